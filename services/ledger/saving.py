"""State to rows and back: a start reads the rows and replays only what came after them.

A row never tells more than the log; dropping them all costs time at the next start, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import msgspec
import structlog

from domain.accounts import Counters, Reservation, Wallet
from domain.instants import Instant
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan, Project
from domain.ports import CheckpointMovedError, StateRow, StateRows
from domain.state import State
from services.ledger.narrowings import Narrowings

log = structlog.get_logger()

_SCHEMA_ROW: Final = "meta/schema"
_TIME_ROW: Final = "meta/at"
_THROUGH_ROW: Final = "meta/through"
_NARROWINGS_ROW: Final = "meta/narrowings"
_CHUNK: Final = 2_000
_SETTLED_KEPT: Final = 100_000
_PART: Final = 20_000
_FORMAT: Final = 2
"""To be raised when rows of the same shape come to mean something else."""

# A row holds what changes together: a stream's version stands with the subject it belongs to.
_SHAPES: Final[dict[str, Any]] = {
    "keyspaces": tuple[Keyspace, int],
    "organizations": tuple[Organization],
    "projects": tuple[Project],
    "plans": tuple[Plan, int],
    "keys": tuple[Key, int],
    "wallets": tuple[Wallet, int],
    "counters": tuple[Counters | None, Instant | None],
    "reservations": tuple[Reservation],
    "refunds": tuple[int],
    "versions": tuple[int],
}
_ROW_OF_STREAM: Final = {"key": "keys", "org": "wallets", "ks": "keyspaces", "plan": "plans"}

_encode = msgspec.msgpack.Encoder().encode
_decoders = {name: msgspec.msgpack.Decoder(shape) for name, shape in _SHAPES.items()}


def _schema() -> bytes:
    """A digest of what rows look like: rows of another program version are not read."""
    described = msgspec.json.encode(
        [_FORMAT, msgspec.json.schema_components(_SHAPES.values())], order="deterministic"
    )
    return sha256(described).digest()


def _decode_int(data: bytes) -> int:
    return msgspec.msgpack.decode(data, type=int)


class StateKeeper:
    """Saves what changed, each second; loads it at the start."""

    def __init__(self, rows: StateRows, state: State, narrowings: Narrowings) -> None:
        self._rows = rows
        self._state = state
        self._narrowings = narrowings
        self._behind = 0
        """The checkpoint that the rows have, as far as we know."""
        self._attempted: int | None = None
        """The checkpoint of a save whose outcome is not known."""
        self._foreign = False
        """Are there rows that this program cannot read?"""
        self._settled: dict[str, None] = {}
        """Settled reservations still in memory, oldest first."""

    # -- loading

    async def load(self) -> None:
        """Fill an empty state with the rows; what they do not tell is in the log."""
        self._settled.clear()
        self._behind = 0
        through = await self._rows.through()
        self._foreign = through > 0 and not await self._readable()
        if through == 0 or self._foreign:
            return
        told: dict[str, bytes] = {}
        async for batch in self._rows.load():
            for row in batch:
                if row.subject.startswith("meta/"):
                    told[row.subject] = row.data
                else:
                    self._restore(row)
            await asyncio.sleep(0)
        self._state.head = self._behind = _decode_int(told[_THROUGH_ROW])
        self._state.at = _decode_int(told[_TIME_ROW])
        self._narrowings.open = msgspec.msgpack.decode(told[_NARROWINGS_ROW], type=dict[int, int])
        self._derive()

    async def _readable(self) -> bool:
        found = await self._rows.find([_SCHEMA_ROW])
        return bool(found) and found[0].data == _schema()

    async def take_over(self) -> bool:
        """The rows are ours to save from now on; false: all of them must be written anew."""
        self._attempted = None
        if self._foreign:
            await self._rows.clear()
        self._behind = await self._rows.through()
        return not self._foreign and self._behind <= self._state.head

    def _restore(self, row: StateRow) -> None:
        table, _, subject = row.subject.partition("/")
        if table not in _SHAPES:
            return
        state, parts = self._state, _decoders[table].decode(row.data)
        if table == "counters":
            counters, last_used = parts
            if counters is not None:
                state.counters[subject] = counters
            if last_used is not None:
                state.last_used[subject] = last_used
            return
        getattr(state, table)[subject] = parts[0]
        if len(parts) > 1:
            state.versions[subject] = parts[1]

    def _derive(self) -> None:
        """What follows from other rows: secrets, members, the agenda."""
        state = self._state
        for key in state.keys.values():
            for secret in key.secrets:
                state.secrets[secret.fingerprint] = secret
                if secret.ends_at is not None and not secret.retired:
                    state.due(secret.ends_at, "secret_ends", key.id, secret.generation)
            if key.expires_at is not None and not key.expiry_recorded:
                state.due(key.expires_at, "key_expires", key.id)
        for organization_id in state.organizations:
            state.members[organization_id] = frozenset()
        for project in state.projects.values():
            if not project.archived:
                state.members[project.organization_id] |= {project.id}
        for reservation in state.reservations.values():
            if reservation.status == "open":
                state.due(reservation.expires_at, "reservation_expires", reservation.id)

    async def find_reservation(self, reservation_id: str) -> None:
        """Bring a settled reservation back into memory, if there is one of that id."""
        found = await self._rows.find([f"reservations/{reservation_id}"])
        if found and reservation_id not in self._state.reservations:
            self._restore(found[0])
            self._settled[reservation_id] = None

    # -- saving

    @property
    def through(self) -> int:
        """The position that the rows are as of."""
        return self._behind

    @property
    def begins(self) -> bool:
        """Is there no checkpoint yet? Then rows may be written in parts, before the first."""
        return self._behind == 0 and self._attempted is None

    async def save(self, dirty: dict[str, set[Any]], *, in_parts: bool = False) -> None:
        """Write the rows that changed, as of the state's head at this moment.

        Committed rows are never changed in place, so what is gathered here at once may be
        encoded and written while decisions go on. `in_parts`: leave the checkpoint at 0, so that
        what is written counts for nothing yet. Raises CheckpointMovedError.
        """
        through = 0 if in_parts else self._state.head
        if through == self._behind and self._attempted is None and not dirty:
            return
        gathered = self._gather(dirty)
        rows = self._told(through)
        for start in range(0, len(gathered), _CHUNK):
            for subject, parts, resident in gathered[start : start + _CHUNK]:
                rows.append(StateRow(subject, _encode(parts), resident))
            await asyncio.sleep(0)
        await self._know_checkpoint()
        self._attempted = through
        await self._rows.save(through, rows, (), behind=self._behind)
        self._behind, self._attempted = through, None
        if not in_parts:
            self._foreign = False

    async def _know_checkpoint(self) -> None:
        """The last save may have been written though it failed."""
        if self._attempted is None:
            return
        stored = await self._rows.through()
        if stored not in (self._behind, self._attempted):
            raise CheckpointMovedError(f"The checkpoint is {stored}, not {self._behind}.")
        self._behind, self._attempted = stored, None

    def _told(self, through: int) -> list[StateRow]:
        return [
            StateRow(_SCHEMA_ROW, _schema()),
            StateRow(_TIME_ROW, _encode(self._state.at)),
            StateRow(_THROUGH_ROW, _encode(through)),
            StateRow(_NARROWINGS_ROW, _encode(self._narrowings.open)),
        ]

    def _gather(self, dirty: dict[str, set[Any]]) -> list[tuple[str, tuple[Any, ...], bool]]:
        gathered: list[tuple[str, tuple[Any, ...], bool]] = []
        for table, subject in _rows_of(dirty):
            parts = self._parts(table, subject)
            resident = table != "reservations" or parts[0].status == "open"
            gathered.append((f"{table}/{subject}", parts, resident))
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
        """Settled reservations that are saved need not stay in memory; the newest do for a while."""
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
    """So many of the changed rows as one part of a save takes; None when all fit into one."""
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
