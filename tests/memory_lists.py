"""The projections that lists are read from, in memory: they write and are asked as in PostgreSQL.

It is SQLite that filters and sorts, with the statements that PostgreSQL is given but for their spelling.
tests/contract/test_projected_lists.py asks both the same.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final
from weakref import finalize

from domain.projecting import Column, FoundEvent, Projection, Row
from projections.audit import Audit
from projections.directory import Directory
from projections.lookup import Lookup

_SPELLED: Final = (
    (r"CREATE INDEX.*?;", ""),
    (r"\) WITH \(.*?\)", ")"),
    (r' COLLATE "C"|\[\]', ""),
    (r"\{schema\}\.", ""),
    (r"(tags|projects) @> ARRAY\[%s\]", r"instr(char(31) || \1 || char(31), char(31) || %s || char(31))"),
    (r"LIKE %s", r"LIKE %s ESCAPE '\\'"),
    (r"= ANY\(%s\)", "IN (SELECT value FROM json_each(%s))"),
    (r"\((SELECT id, .*? LIMIT \d+)\)", r"SELECT * FROM (\1)"),
    (r"%s", "?"),
)
"""PostgreSQL's words, and SQLite's. An array is a text with its elements between separators."""
_INSERT: Final = re.compile(r"INSERT INTO (\w+)[^(]*?(?:\((?P<columns>[^()]*)\)\s*)?SELECT", re.DOTALL)


def _spelled(statement: str) -> str:
    for pattern, words in _SPELLED:
        statement = re.sub(pattern, words, statement, flags=re.DOTALL)
    return statement


class MemoryLists:
    """Keys, organizations, projects, plans, keyspaces and the audit log, as of the events that were told."""

    def __init__(self) -> None:
        # Closed with its owner, in whichever thread garbage is collected.
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        finalize(self, self._database.close)
        self._database.execute("PRAGMA case_sensitive_like = on")
        self._projections: tuple[Projection, ...] = (Lookup(), Directory(), Audit())
        for one in self._projections:
            self._database.executescript(_spelled(one.definition))

    def has(self, statement: str) -> bool:
        """Is it asked of a table of these?"""
        tables = re.findall(r"\{schema\}\.(\w+)", statement)
        return {*tables} <= {table.name for one in self._projections for table in one.tables}

    def follow(self, placed: Iterable[FoundEvent]) -> None:
        """Project these events; they follow those that were told before."""
        events = list(placed)
        for one in self._projections:
            handlers = one.handlers()
            for position, _, event in events:
                if (handler := handlers.get(type(event))) is not None:
                    handler([event], position)
            one.take()(self)

    def ask(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """What a statement finds."""
        return self._database.execute(_spelled(statement), parameters).fetchall()

    # -- a session, as projections have it

    def rows(self, statement: str, *columns: Column) -> list[Row]:
        """What it finds."""
        return self.ask(statement, ['["' + '","'.join(map(str, columns[0].values)) + '"]'])

    def write(self, statement: str, *columns: Column) -> None:
        """Rows that are added, or changed where their first column is there already."""
        found = _INSERT.match(_spelled(statement).strip())
        values = list(zip(*(column.values for column in columns), strict=True))
        if found is None:  # the one that changes a single column
            changed = "UPDATE key_uses SET last_used_at = max(last_used_at, ?2) WHERE id = ?1"
            self._database.executemany(changed, values)
            return
        table = found[1]
        names = (found["columns"] or "").replace("\n", " ").replace(" ", "").split(",")
        if names == [""]:
            names = [name for _, name, *_ in self._database.execute(f"PRAGMA table_info({table})")]
        changes = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self._database.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            f" ON CONFLICT ({names[0]}) DO UPDATE SET {changes}",
            values,
        )
