"""State to rows and back: a start reads the rows and replays only what came after them.

A row never contains more than the log; deleting all rows costs time at the next start, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable
from itertools import islice
from typing import Any, Final

import structlog

from domain.ports import CheckpointMovedError, DataKeyError, StateRow, StateRows
from domain.state import State
from keyledger_language.history import BEGINNING, HistoryPoint
from services.ledger.jobs import DataKeyring
from services.ledger.lazy_tables import LazyTables
from services.ledger.loading import Loading
from services.ledger.narrowings import Narrowings
from services.ledger.row_format import decode_one, encode_row, encode_told, schema

log = structlog.get_logger()

_SCHEMA_ROW: Final = "meta/schema"
_CHUNK: Final = 500
"""This many rows are encoded before other tasks run: a key's row with personal fields takes 5 us."""
_SETTLED_KEPT: Final = 100_000
_PART: Final = 20_000
_ROW_OF_STREAM: Final = {"key": "keys", "org": "wallets", "ks": "keyspaces", "plan": "plans"}
"""A stream's version is saved with the subject that it belongs to."""


class StateKeeper:
    """Saves the rows that changed, and loads all of them at the start."""

    def __init__(
        self,
        rows: StateRows,
        state: State,
        narrowings: Narrowings,
        keyring: DataKeyring,
        *,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self._rows = rows
        self._state = state
        self._narrowings = narrowings
        self._keyring = keyring
        self._epoch = epoch
        """The epoch of the log that the state was read from."""
        self._behind = BEGINNING
        """The checkpoint that the rows have, as far as we know."""
        self._attempted: HistoryPoint | None = None
        """The checkpoint of a save whose outcome is not known."""
        self._foreign = False
        """Whether there are rows that this program cannot read."""
        self._settled: dict[str, None] = {}
        """Settled reservations still in memory, oldest first."""
        self._lazy: LazyTables | None = None
        """The tables that were loaded last."""

    # -- loading

    async def load(self, learn_data_keys: Callable[[], Awaitable[None]]) -> None:
        """Fill an empty state with the rows; what they do not contain is in the log.

        Data keys are learned after the rows are read and before any of them is decoded: a key that
        is made later comes with its first event, and is learned then.
        """
        loading = await self._read()
        await learn_data_keys()
        if loading is None:
            return
        try:
            self._finish(loading)
        except DataKeyError as error:
            # Rows of another history, or changed from outside: the log has what is true.
            log.error("state.unreadable", problem=str(error))  # noqa: TRY400  # the message says it all
            loading.lazy.release()
            self._state.forget()
            self._foreign = True

    async def _read(self) -> Loading | None:
        """The rows as they are stored; None if there are none that this program can read."""
        self._settled.clear()
        self._behind = BEGINNING
        if self._lazy is not None:
            self._lazy.release()
            self._lazy = None
        through = await self._rows.through()
        self._foreign = through.position > 0 and not await self._readable()
        if through.position == 0 or self._foreign:
            return None
        loading = Loading(self._state, self._keyring)
        self._lazy = loading.lazy
        async for block in self._rows.load():
            loading.take(block)
            await asyncio.sleep(0)
        return loading

    def _finish(self, loading: Loading) -> None:
        loading.finish()
        self._behind = HistoryPoint(*loading.told["through"])
        self._state.head, self._state.mark = self._behind.position, self._behind.mark
        self._state.at = loading.told["at"]
        self._narrowings.open = loading.told["narrowings"]

    async def _readable(self) -> bool:
        found = await self._rows.find([_SCHEMA_ROW])
        return bool(found) and found[0].data == encode_told("schema", schema())

    async def take_over(self, is_in_log: Callable[[HistoryPoint], Awaitable[bool]]) -> bool:
        """From now on this process saves the rows; false: all of them must be written again.

        Rows of another history are deleted: what only that history had must not come back.
        """
        self._attempted = None
        self._behind = await self._rows.through()
        if self._foreign or not await is_in_log(self._behind):
            await self._rows.clear()
            self._behind = BEGINNING
            return False
        return True

    async def find_reservation(self, reservation_id: str) -> None:
        """Bring a settled reservation back into memory, if there is one of that id."""
        found = await self._rows.find([f"reservations/{reservation_id}"])
        if found and reservation_id not in self._state.reservations:
            [reservation] = decode_one("reservations", found[0].data)
            self._state.reservations[reservation_id] = reservation
            self._settled[reservation_id] = None

    # -- saving

    @property
    def through(self) -> int:
        """The position that the rows are as of."""
        return self._behind.position

    @property
    def checkpoint(self) -> HistoryPoint:
        """The same, with its mark, and the epoch that the rows were saved in."""
        return self._behind

    @property
    def begins(self) -> bool:
        """Whether there is no checkpoint yet: then rows may be written in parts, before the first one."""
        return self._behind.position == 0 and self._attempted is None

    async def save(self, dirty: dict[str, set[Any]], *, in_parts: bool = False) -> None:
        """Write the rows that changed, as of the state's head at this moment.

        Committed rows are never changed in place, so what is gathered here at once may be
        encoded and written while decisions continue. `in_parts`: leave the checkpoint at 0, so that
        what is written does not count yet. Raises CheckpointMovedError.
        """
        through = BEGINNING if in_parts else HistoryPoint(self._state.head, self._state.mark, self._epoch())
        if through == self._behind and self._attempted is None and not dirty:
            return
        gathered = self._gather(dirty)
        rows = self._told(through)
        for start in range(0, len(gathered), _CHUNK):
            for table, subject, parts, resident in gathered[start : start + _CHUNK]:
                data = encode_row(table, subject, parts, self._keyring)
                rows.append(StateRow(f"{table}/{subject}", data, resident))
            await asyncio.sleep(0)
        await self._know_checkpoint()
        self._attempted = through
        await self._rows.save(through, rows, (), behind=self._behind)
        self._behind, self._attempted = through, None
        if not in_parts:
            self._foreign = False

    async def _know_checkpoint(self) -> None:
        """Find out the checkpoint: the last save may have been written although it failed."""
        if self._attempted is None:
            return
        stored = await self._rows.through()
        if stored[:2] not in (self._behind[:2], self._attempted[:2]):
            raise CheckpointMovedError(
                f"The checkpoint is {stored.position}, not {self._behind.position}, or of another history."
            )
        self._behind, self._attempted = stored, None

    def _told(self, through: HistoryPoint) -> list[StateRow]:
        told = {
            "schema": schema(),
            "at": self._state.at,
            "through": through,
            "narrowings": self._narrowings.open,
        }
        return [StateRow(f"meta/{name}", encode_told(name, value)) for name, value in told.items()]

    def _gather(self, dirty: dict[str, set[Any]]) -> list[tuple[str, str, tuple[Any, ...], bool]]:
        gathered: list[tuple[str, str, tuple[Any, ...], bool]] = []
        for table, subject in _rows_of(dirty):
            parts = self._parts(table, subject)
            resident = table != "reservations" or parts[0].status == "open"
            gathered.append((table, subject, parts, resident))
        return gathered

    def _parts(self, table: str, subject: str) -> tuple[Any, ...]:
        state = self._state
        if table == "counters":
            return state.counters.get(subject), state.last_used.get(subject)
        if table == "versions":
            return (state.versions.get(subject, 0),)
        row = getattr(state, table)[subject]
        if table in _ROW_OF_STREAM.values():
            return row, state.versions.get(subject, 0)
        return (row,)

    def forget_settled(self, saved: Iterable[str], still_dirty: Container[str] = ()) -> None:
        """Forget settled reservations that are saved; the newest stay in memory for a while."""
        reservations = self._state.reservations
        known = [one for name in saved if (one := reservations.get(name)) is not None]
        for reservation in sorted(known, key=lambda one: one.position):
            if reservation.status != "open":
                self._settled.pop(reservation.id, None)
                self._settled[reservation.id] = None
        surplus = len(self._settled) - _SETTLED_KEPT
        for oldest in list(islice(self._settled, max(0, surplus))):
            if oldest not in still_dirty:
                del self._settled[oldest]
                reservations.pop(oldest, None)


def take_part(dirty: dict[str, set[Any]]) -> dict[str, set[Any]] | None:
    """As many of the changed rows as one part of a save takes; None if all fit into one."""
    if sum(len(rows) for rows in dirty.values()) <= _PART:
        return None
    table = max(dirty, key=lambda name: len(dirty[name]))
    rows = dirty[table]
    return {table: {rows.pop() for _ in range(min(_PART, len(rows)))}}


def _rows_of(dirty: dict[str, set[Any]]) -> set[tuple[str, str]]:
    """The rows in which changed table entries are saved."""
    named: set[tuple[str, str]] = set()
    for table, subjects in dirty.items():
        if table in ("secrets", "members"):
            continue
        if table == "last_used":
            named.update(("counters", subject) for subject in subjects)
        elif table == "versions":
            for stream in subjects:
                kind = stream.partition("_")[0]
                named.add((_ROW_OF_STREAM.get(kind, "versions"), stream))
        else:
            named.update((table, subject) for subject in subjects)
    return named
