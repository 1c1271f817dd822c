"""Loading saved rows into a state."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from heapq import heapify
from typing import Any, cast

from domain.ports import StateBlock
from domain.state import Due, State
from services.ledger.jobs import DataKeyring
from services.ledger.lazy_tables import LazyTables
from services.ledger.row_format import Ahead, KeyEntry, ProjectEntry, decode_block, knows


class Loading:
    """An empty state that is being filled with rows."""

    def __init__(self, state: State, keyring: DataKeyring) -> None:
        self.lazy = LazyTables(state, keyring)
        self.told: dict[str, Any] = {}
        """The rows of the table `meta`."""
        self._state = state
        self._due: list[Due] = []
        self._at_once: list[str] = []
        self._members: dict[str, set[str]] = {}

    def take(self, block: StateBlock) -> None:
        """Put a block's rows where they belong."""
        table = block.table
        if not knows(table):
            return
        entries = decode_block(table, block.row_count, block.rows)
        if table == "meta":
            self.told.update(entries)
        elif table == "keys":
            self._take_keys(entries)
        elif table == "projects":
            self._take_projects(entries)
        elif table in ("organizations", "wallets", "counters"):
            self.lazy.add(table, entries)
        else:
            self._take_decoded(table, entries)

    def _take_keys(self, entries: dict[str, KeyEntry]) -> None:
        # There may be millions: where possible, the loops over them are the interpreter's own.
        rows, fingerprints, aheads = zip(*entries.values(), strict=True)
        self.lazy.add_keys(zip(entries, rows, strict=True), _each(fingerprints, entries))
        if any(aheads):
            for key_id, (_, _, ahead) in entries.items():
                if ahead is not None:
                    self._look_ahead(key_id, ahead)

    def _look_ahead(self, key_id: str, ahead: Ahead) -> None:
        self._due.extend((when, kind, key_id, generation) for when, kind, generation in ahead.dues)
        if ahead.at_once:
            self._at_once.append(key_id)

    def _take_projects(self, entries: dict[str, ProjectEntry]) -> None:
        self.lazy.add("projects", {project_id: row for project_id, (row, _) in entries.items()})
        for project_id, (_, member_of) in entries.items():
            if member_of is not None:
                self._members.setdefault(member_of, set()).add(project_id)

    def _take_decoded(self, table: str, entries: dict[str, tuple[Any, ...]]) -> None:
        rows, versions = getattr(self._state, table), self._state.versions
        for subject, parts in entries.items():
            rows[subject] = parts[0]
            if len(parts) > 1:
                versions[subject] = parts[1]
        if table == "reservations":
            self._due.extend(
                (one.expires_at, "reservation_expires", one.id, 0)
                for (one,) in entries.values()
                if one.status == "open"
            )

    def finish(self) -> None:
        """Derive the rest, once all rows are in and the data keys that they need are learned."""
        state = self._state
        for organization_id, projects in self._members.items():
            state.members[organization_id] = frozenset(projects)
        for key_id in sorted(self._at_once):
            state.keys.find(key_id)
        # In the order in which they were made, as before they were saved.
        state.keyspaces.update(sorted(_taken_out(state.keyspaces)))
        state.plans.update(sorted(_taken_out(state.plans)))
        state.agenda.extend(self._due)
        heapify(state.agenda)


def _each(
    fingerprints: Iterable[bytes | tuple[bytes, ...]], key_ids: Iterable[str]
) -> Iterable[tuple[bytes, str]]:
    """Fingerprints with the ids of their keys; most keys have one."""
    if {*map(type, fingerprints)} == {bytes}:
        return zip(cast(Iterable[bytes], fingerprints), key_ids, strict=True)
    return [
        (one, key_id)
        for found, key_id in zip(fingerprints, key_ids, strict=True)
        for one in (found if isinstance(found, tuple) else (found,))
    ]


def _taken_out(table: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = list(table.items())
    table.clear()
    return rows


@contextmanager
def garbage_kept() -> Generator[None]:
    """Without garbage collection: loading a lot leaves no garbage, and looking for it takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
