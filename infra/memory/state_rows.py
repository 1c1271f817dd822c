"""State rows in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from domain.ports import CheckpointMovedError, StateBlock, StateRow
from keyledger_language.history import BEGINNING, HistoryPoint


class MemoryStateRows:
    """A dict and a checkpoint."""

    def __init__(self) -> None:
        self._rows: dict[str, StateRow] = {}
        self._through = BEGINNING

    async def save(
        self, through: HistoryPoint, rows: Sequence[StateRow], removed: Sequence[str], *, behind: HistoryPoint
    ) -> None:
        """Write rows and checkpoint together, if the checkpoint is the one expected."""
        if behind[:2] != self._through[:2]:
            raise CheckpointMovedError(f"The checkpoint is {self._through}, not {behind}.")
        for subject in removed:
            self._rows.pop(subject, None)
        self._rows.update({row.subject: row for row in rows})
        self._through = through

    async def through(self) -> HistoryPoint:
        """The checkpoint."""
        return self._through

    async def load(self) -> AsyncIterator[StateBlock]:
        """All resident rows, a block for each table."""
        tables: dict[str, list[bytes]] = {}
        for row in self._rows.values():
            if row.resident:
                tables.setdefault(row.subject.partition("/")[0], []).append(row.data)
        for table, rows in tables.items():
            yield StateBlock(table, len(rows), b"".join(rows))

    async def find(self, subjects: Sequence[str]) -> list[StateRow]:
        """These rows, resident or not."""
        return [self._rows[subject] for subject in subjects if subject in self._rows]

    async def clear(self) -> None:
        """Delete everything."""
        self._rows.clear()
        self._through = BEGINNING
