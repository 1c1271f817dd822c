"""The request log: charges, reservations, what became of them, and what was refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from struct import pack, unpack
from typing import Any, Final, Literal, NamedTuple, Protocol
from zlib import crc32

import msgspec

from domain.claims import request_claim
from domain.ids import is_id, place_of
from domain.projecting import (
    EventReader,
    FoundEvent,
    Handler,
    ProjectionTable,
    Queries,
    SchemaTransaction,
    Writing,
    bigints,
    byte_strings,
    integers,
)
from keyledger_language import events as e
from keyledger_language.instants import DAY, Instant
from projections.directory import organization_ids

REFUSALS_KEPT_DAYS: Final = 30
"""How long a refused request can be found; rows this many days older than the last refusal are deleted."""
BLOCK: Final = 64
"""Positions per block of the index by key."""
_BLOCKS_IN_ROW: Final = 64
_BLOCK_BYTES: Final = 4
_MOST_REMEMBERED: Final = 200_000

_DEFINITION: Final = """
-- The log itself is the request log: a charge's or reservation's id holds its position, and a request id's
-- claim points to it. These tables only answer what those can't.

-- In which blocks of 64 positions a list has lines: a key's, an organization's, the whole log's, and each
-- of these by the code of refusals. 64 such blocks to a row, ascending, each in 4 bytes. A row per block
-- took most of PostgreSQL's time, and 60 bytes.
CREATE TABLE {schema}.request_blocks (
    list_digest integer NOT NULL,
    first integer NOT NULL, -- of its blocks
    blocks bytea NOT NULL,
    PRIMARY KEY (list_digest, first)
) WITH (fillfactor = 60); -- a row grows in place

-- What refers back to the charge or reservation at the position `subject`.
CREATE TABLE {schema}.settlements (
    subject bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (subject, position)
);

-- Refused requests are not claimed, since they may be tried again.
CREATE TABLE {schema}.refusals (
    request_digest bigint NOT NULL,
    position bigint NOT NULL,
    day integer NOT NULL,
    PRIMARY KEY (request_digest, position)
);
CREATE INDEX ON {schema}.refusals (day);
"""
_NEWEST_BLOCKS: Final = """
SELECT list_digest, first, blocks FROM unnest(%s) AS l (digest) CROSS JOIN LATERAL (
    SELECT * FROM {schema}.request_blocks WHERE list_digest = l.digest ORDER BY first DESC LIMIT 1) AS newest
"""
_SAVE_BLOCKS: Final = """
INSERT INTO {schema}.request_blocks AS b SELECT * FROM unnest(%s, %s, %s) ORDER BY 1, 2
ON CONFLICT (list_digest, first) DO UPDATE SET blocks = b.blocks || excluded.blocks
"""
_SAVE_SETTLEMENTS: Final = "INSERT INTO {schema}.settlements SELECT * FROM unnest(%s, %s)"
_SAVE_REFUSALS: Final = """
INSERT INTO {schema}.refusals SELECT * FROM unnest(%s, %s, %s) ON CONFLICT DO NOTHING
"""
_PRUNE_REFUSALS: Final = "DELETE FROM {schema}.refusals WHERE day <= ANY(%s)"


class _OfKey(Protocol):
    @property
    def key_id(self) -> str: ...
    @property
    def organization_id(self) -> str | None: ...


class _Newest(NamedTuple):
    """The newest row of blocks of a list, as written."""

    first: int
    size: int
    last: int


_NONE_YET: Final = _Newest(-1, _BLOCKS_IN_ROW, -1)


class Requests:
    """Where in the log requests are, whose they are, and what settles them."""

    name = "requests"
    version = 3
    definition = _DEFINITION
    tables: tuple[ProjectionTable, ...] = (
        ProjectionTable("request_blocks", ("list_digest", "first")),
        ProjectionTable("settlements", ("subject", "position")),
        ProjectionTable("refusals", ("request_digest", "position")),
    )

    def __init__(self) -> None:
        self._blocks: defaultdict[str, list[int]] = defaultdict(list)
        """By list, ascending; a block that was split in two is in it twice."""
        self._newest: dict[int, _Newest] = {}
        """By a list's digest, as far as they are known."""
        self._settlements: list[tuple[int, int]] = []
        self._refusals: dict[tuple[int, int], int] = {}
        self._day = 0
        self._pruned = 0

    def handlers(self) -> Mapping[type[e.Event], Handler]:
        """All metered use."""
        return {
            e.UsageCharged: self._used,
            e.CreditsReserved: self._used,
            e.UsageRefunded: self._refunded,
            e.ReservationCaptured: self._settled,
            e.ReservationReleased: self._settled,
            e.ReservationExpired: self._settled,
            e.UsageDenied: self._denied,
        }

    def held(self) -> int:
        """The number of lists that grew, of settlements and of refusals."""
        return len(self._blocks) + len(self._settlements) + len(self._refusals)

    def forget(self) -> None:
        """Drop what is not written, and what may not have been written."""
        self._blocks, self._newest, self._settlements, self._refusals = defaultdict(list), {}, [], {}
        self._day = self._pruned = 0

    def take(self) -> Writing:
        """Append what is new; delete refusals that are too old."""
        blocks, self._blocks = self._blocks, defaultdict(list)
        settlements, self._settlements = self._settlements, []
        refusals, self._refusals = self._refusals, {}
        # Only refusals advance the day: any other rule would have to look at every event.
        prune_through = self._day - REFUSALS_KEPT_DAYS if self._day > self._pruned else None
        self._pruned = self._day

        def write(session: SchemaTransaction) -> None:
            if blocks:
                _add_blocks(session, blocks, self._newest)
            if settlements:
                subjects, positions = zip(*settlements, strict=True)
                session.write(_SAVE_SETTLEMENTS, bigints(subjects), bigints(positions))
            if refusals:
                request_digests, positions = zip(*refusals, strict=True)
                days = integers(list(refusals.values()))
                session.write(_SAVE_REFUSALS, bigints(request_digests), bigints(positions), days)
            if prune_through is not None:
                session.write(_PRUNE_REFUSALS, integers([prune_through]))

        return write

    def _used(self, events: Sequence[_OfKey], first: int) -> None:
        start = 0
        while start < len(events):
            block = (first + start) // BLOCK
            end = (block + 1) * BLOCK - first
            run = events[start:end]
            for key_id in {event.key_id for event in run}:
                self._blocks[key_id].append(block)
            for organization_id in {event.organization_id for event in run}:
                if organization_id is not None:
                    self._blocks[organization_id].append(block)
            self._blocks[EVERYBODY].append(block)
            start = end

    def _refunded(self, events: Sequence[e.UsageRefunded], first: int) -> None:
        self._used(events, first)
        for position, event in enumerate(events, first):
            self._settlements.append((place_of(event.charge_id)[1], position))

    def _settled(self, events: Sequence[e.ReservationCaptured | e.ReservationReleased], first: int) -> None:
        self._used(events, first)
        for position, event in enumerate(events, first):
            self._settlements.append((place_of(event.reservation_id)[1], position))

    def _denied(self, events: Sequence[e.UsageDenied], first: int) -> None:
        for position, event in enumerate(events, first):
            if not event.requests:
                continue
            self._used((event,), position)
            for code in {denial.code for denial in event.requests}:
                for whose in (event.key_id, event.organization_id, EVERYBODY):
                    if whose is not None:
                        self._blocks[list_name(whose, code)].append(position // BLOCK)
            self._day = event.at // DAY
            for denial in event.requests:
                self._refusals[request_digest(denial.request_id), position] = self._day


def _add_blocks(session: SchemaTransaction, found: dict[str, list[int]], newest: dict[int, _Newest]) -> None:
    """Fill each list's newest row, then begin new ones; `newest` is updated with what is written."""
    blocks: dict[int, list[int]] = {}
    for name, more in found.items():
        digest = list_digest(name)
        if len(more) > 1 or digest in blocks:
            more = sorted({*blocks.get(digest, ()), *more})  # noqa: PLW2901  # most lists grew by one block
        blocks[digest] = more
    _learn_newest(session, blocks, newest)
    rows: list[tuple[int, int, bytes]] = []
    for digest, ascending in blocks.items():
        row = newest.get(digest, _NONE_YET)
        start = 1 if ascending[0] == row.last else 0
        while start < len(ascending):
            if row.size == _BLOCKS_IN_ROW:
                row = _Newest(ascending[start], 0, -1)
            part = ascending[start : start + _BLOCKS_IN_ROW - row.size]
            rows.append((digest, row.first, pack(f">{len(part)}i", *part)))
            row = _Newest(row.first, row.size + len(part), part[-1])
            start += len(part)
        newest[digest] = row
    if rows:
        digests, firsts, packed = zip(*rows, strict=True)
        session.write(_SAVE_BLOCKS, integers(digests), integers(firsts), byte_strings(packed))


def _learn_newest(session: SchemaTransaction, digests: Iterable[int], newest: dict[int, _Newest]) -> None:
    if len(newest) > _MOST_REMEMBERED:
        newest.clear()
    unknown = [digest for digest in digests if digest not in newest]
    for digest, first, packed in session.rows(_NEWEST_BLOCKS, integers(unknown)) if unknown else ():
        blocks = unpacked(packed)
        newest[digest] = _Newest(first, len(blocks), blocks[-1])


def unpacked(blocks: bytes) -> tuple[int, ...]:
    """The blocks in a row, ascending."""
    return unpack(f">{len(blocks) // _BLOCK_BYTES}i", blocks)


EVERYBODY: Final = ""
"""Stands for all keys and organizations: the whole request log."""


def list_name(whose: str, code: str | None = None) -> str:
    """The name of a list of requests: those of a key, an organization or everybody, all or by code."""
    return whose if code is None else f"{whose} {code}"


def list_digest(name: str) -> int:
    """A list's name in 32 bits: what is found is compared with what was asked for."""
    return crc32(name.encode(errors="surrogatepass")) - 2**31


def request_digest(request_id: str) -> int:
    """A request id in 64 bits, whatever it contains: what is found is compared with the id itself."""
    digest = blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


# -- queries --------------------------------------------------------------------------------------

Kind = Literal["charge", "reservation", "refund", "capture", "release", "expiry", "refusal"]
KINDS: Final[dict[type[e.Event], Kind]] = {
    e.UsageCharged: "charge",
    e.CreditsReserved: "reservation",
    e.UsageRefunded: "refund",
    e.ReservationCaptured: "capture",
    e.ReservationReleased: "release",
    e.ReservationExpired: "expiry",
}


class RequestEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the request log."""

    kind: Kind
    position: int
    at: Instant
    organization_id: str | None
    key_id: str
    request_id: str | None
    charge_id: str | None = None
    reservation_id: str | None = None
    base_micros: int | None = None
    price_multiplier: str | None = None
    amount_micros: int | None = None
    model: str | None = None
    provider: str | None = None
    project_id: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None
    metadata: dict[str, Any] | None = None
    code: str | None = None
    """Why it was refused."""
    refunded_micros: int = 0
    """The total that was refunded of a charge so far."""
    status: Literal["open", "captured", "released", "expired"] | None = None
    """Of a reservation, with the figures below."""
    expires_at: Instant | None = None
    held_micros: int | None = None
    captured_micros: int | None = None
    uncovered_micros: int | None = None


MOST_SEARCHED: Final = 1_000
"""How many organizations are searched for a request id if none is named."""


class TooManyOrganizationsError(Exception):
    """A request id cannot be searched for in all organizations: there are more than MOST_SEARCHED."""


async def find_request(
    queries: Queries,
    events: EventReader,
    request_id: str,
    *,
    organization_id: str | None = None,
    now: Instant,
) -> list[RequestEntry]:
    """The lines of a request id, in one organization or in all of them, oldest first.

    Granted requests are found at once and for ever; refused ones once they are projected, and for
    REFUSALS_KEPT_DAYS. Raises TooManyOrganizationsError if none is named and there are more than
    MOST_SEARCHED.
    """
    # A claim is of an organization and a request id together: there is no index by the request id alone,
    # which would cost each charge a row.
    organizations = [organization_id]
    if organization_id is None:
        organizations = [*await organization_ids(queries, limit=MOST_SEARCHED + 1)]
        if len(organizations) > MOST_SEARCHED:
            raise TooManyOrganizationsError
    placed = await events.at(
        await events.claimed([request_claim(one, request_id) for one in organizations if one is not None])
    )
    granted = [
        one
        for one in placed
        if type(one.event) in KINDS and getattr(one.event, "request_id", None) == request_id
    ]
    entries = await with_settlements(queries, events, granted)
    refused = await _refusals(queries, events, request_id, now)
    found = [entry for entry in refused if organization_id in {None, entry.organization_id}]
    return sorted((*entries, *found), key=lambda entry: entry.position)


_SETTLEMENTS: Final = (
    "SELECT subject, position FROM {schema}.settlements WHERE subject = ANY(%s) ORDER BY position"
)


class ChargeAndRefunds(NamedTuple):
    """A charge as it was recorded, and its refunds since, oldest first."""

    charge: FoundEvent
    refunds: list[FoundEvent]


async def charge_and_refunds(
    queries: Queries, events: EventReader, charge_id: str
) -> ChargeAndRefunds | None:
    """A charge by its id (also that of a captured reservation): found at once, its refunds once projected."""
    if not is_id("chg", charge_id):
        return None
    placed = [
        one
        for one in await events.at([place_of(charge_id)[1]])
        if isinstance(one.event, e.UsageCharged | e.ReservationCaptured) and one.event.charge_id == charge_id
    ]
    if not placed:
        return None
    rows = await queries.rows(_SETTLEMENTS, ([placed[0].position],))
    later = await events.at([position for _, position in rows])
    refunds = [
        one for one in later if isinstance(one.event, e.UsageRefunded) and one.event.charge_id == charge_id
    ]
    return ChargeAndRefunds(placed[0], refunds)


async def find_reservation(queries: Queries, events: EventReader, reservation_id: str) -> RequestEntry | None:
    """A reservation by its id, in its current state."""
    if not is_id("rsv", reservation_id):
        return None
    placed = [
        one
        for one in await events.at([place_of(reservation_id)[1]])
        if type(one.event) in KINDS and getattr(one.event, "reservation_id", None) == reservation_id
    ]
    entries = await with_settlements(queries, events, placed)
    return entries[0] if entries else None


async def _refusals(
    queries: Queries, events: EventReader, request_id: str, now: Instant
) -> list[RequestEntry]:
    statement = (
        "SELECT position FROM {schema}.refusals WHERE request_digest = %s ORDER BY position DESC LIMIT 100"
    )
    rows = await queries.rows(statement, (request_digest(request_id),))
    return [
        entry
        for position, _, event in await events.at([position for (position,) in rows])
        if isinstance(event, e.UsageDenied)
        for entry in refused_in(position, event, now)
        if entry.request_id == request_id
    ]


def refused_in(position: int, event: e.UsageDenied, now: Instant) -> list[RequestEntry]:
    """The lines of refusals that were recorded together, oldest first; none if they are too old."""
    if event.at // DAY <= now // DAY - REFUSALS_KEPT_DAYS:
        return []
    metadata = (event.private.metadata if event.private is not None else None) or {}
    return [
        RequestEntry(
            kind="refusal",
            position=position,
            at=denial.at,
            organization_id=event.organization_id,
            key_id=event.key_id,
            request_id=denial.request_id,
            code=denial.code,
            metadata=metadata.get(str(place)),
            **{name: value for name in _COPIED if (value := getattr(denial, name, None)) is not None},
        )
        for place, denial in enumerate(event.requests)
    ]


async def with_settlements(
    queries: Queries, events: EventReader, placed: Sequence[FoundEvent]
) -> list[RequestEntry]:
    """The line of each event, with what happened to it since, which is read from the log if anything did."""
    rows = await queries.rows(_SETTLEMENTS, ([one.position for one in placed],)) if placed else []
    later = {one.position: one.event for one in await events.at([position for _, position in rows])}
    settled: dict[int, list[e.Event]] = {}
    for subject, position in rows:
        settled.setdefault(subject, []).append(later[position])
    return [_entry(one, settled.get(one.position, [])) for one in placed]


def _entry(placed: FoundEvent, settlements: Sequence[e.Event]) -> RequestEntry:
    event: Any = placed.event  # one of KINDS
    entry = RequestEntry(
        kind=KINDS[type(event)],
        position=placed.position,
        at=event.at,
        organization_id=event.organization_id,
        key_id=event.key_id,
        request_id=event.request_id,
        **{name: value for name in _COPIED if (value := getattr(event, name, None)) is not None},
    )
    if event.private is not None:
        entry = msgspec.structs.replace(entry, metadata=event.private.metadata)
    if isinstance(event, e.CreditsReserved):
        return _as_it_stands(entry, event, settlements)
    refunds = [one.refunded_micros for one in settlements if isinstance(one, e.UsageRefunded)]
    return msgspec.structs.replace(entry, refunded_micros=refunds[-1]) if refunds else entry


_COPIED: Final = (
    "charge_id",
    "reservation_id",
    "base_micros",
    "price_multiplier",
    "amount_micros",
    "model",
    "provider",
    "project_id",
    "tenant_org_id",
    "tenant_user_id",
    "expires_at",
    "uncovered_micros",
)


def _as_it_stands(
    entry: RequestEntry, event: e.CreditsReserved, settlements: Sequence[e.Event]
) -> RequestEntry:
    held, captured, uncovered = event.amount_micros, 0, 0
    status: Literal["open", "captured", "released", "expired"] = "open"
    for one in settlements:
        match one:
            case e.ReservationCaptured():
                held -= one.held_micros + one.released_micros
                captured += one.amount_micros
                uncovered += one.uncovered_micros
                status = "captured" if one.final else status
            case e.ReservationExpired():
                held, status = 0, "expired"
            case e.ReservationReleased():
                held, status = 0, "released"
            case _:
                pass
    return msgspec.structs.replace(
        entry, status=status, held_micros=held, captured_micros=captured, uncovered_micros=uncovered
    )
