"""The request log: charges, reservations, what became of them, and what was refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple
from zlib import crc32

import msgspec

from domain import events as e
from domain.claims import request_claim
from domain.ids import is_id, place_of
from domain.instants import DAY, Instant
from domain.projecting import (
    EventReader,
    Handler,
    Placed,
    Queries,
    Session,
    Table,
    Writing,
    bigints,
    integers,
)
from projections.directory import organization_ids
from projections.pages import decode_number, encode_number

REFUSALS_KEPT_DAYS: Final = 30
"""How long a refused request can be found; rows are dropped as many days behind the last refusal."""
BLOCK: Final = 64
"""Positions per block of the index by key."""

_DEFINITION: Final = """
-- The log itself is the request log: a charge's or reservation's id holds its position, and a request id's
-- claim points to it. These tables only answer what those can't.

-- In which blocks of 64 positions a key was used: a hot key takes a row per block, not per request.
CREATE TABLE {schema}.request_blocks (
    key_digest integer NOT NULL,
    block integer NOT NULL,
    PRIMARY KEY (key_digest, block)
);

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
_SAVE_BLOCKS: Final = (
    "INSERT INTO {schema}.request_blocks SELECT * FROM unnest(%s, %s) ON CONFLICT DO NOTHING"
)
_SAVE_SETTLEMENTS: Final = "INSERT INTO {schema}.settlements SELECT * FROM unnest(%s, %s)"
_SAVE_REFUSALS: Final = """
INSERT INTO {schema}.refusals SELECT * FROM unnest(%s, %s, %s) ON CONFLICT DO NOTHING
"""
_PRUNE_REFUSALS: Final = "DELETE FROM {schema}.refusals WHERE day <= ANY(%s)"


class Requests:
    """Where in the log a key's requests are, and what settles them."""

    name = "requests"
    version = 1
    definition = _DEFINITION
    tables: tuple[Table, ...] = (
        Table("request_blocks", ("key_digest", "block")),
        Table("settlements", ("subject", "position")),
        Table("refusals", ("request_digest", "position")),
    )

    def __init__(self) -> None:
        self._blocks: set[tuple[str, int]] = set()
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

    def forget(self) -> None:
        """Drop what is not written."""
        self._blocks, self._settlements, self._refusals = set(), [], {}
        self._day = self._pruned = 0

    def take(self) -> Writing:
        """Append what is new; forget refusals that are too old."""
        blocks, self._blocks = self._blocks, set()
        settlements, self._settlements = self._settlements, []
        refusals, self._refusals = self._refusals, {}
        # Only refusals move the day on: another rule would have to look at every event.
        prune_through = self._day - REFUSALS_KEPT_DAYS if self._day > self._pruned else None
        self._pruned = self._day

        def write(session: Session) -> None:
            if blocks:
                digests = integers([key_digest(key_id) for key_id, _ in blocks])
                session.write(_SAVE_BLOCKS, digests, integers([block for _, block in blocks]))
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

    def _used(self, event: e.Metered, position: int) -> None:
        self._blocks.add((event.key_id, position // BLOCK))

    def _refunded(self, event: e.UsageRefunded, position: int) -> None:
        self._blocks.add((event.key_id, position // BLOCK))
        self._settlements.append((place_of(event.charge_id)[1], position))

    def _settled(self, event: e.ReservationCaptured | e.ReservationReleased, position: int) -> None:
        self._blocks.add((event.key_id, position // BLOCK))
        self._settlements.append((place_of(event.reservation_id)[1], position))

    def _denied(self, event: e.UsageDenied, position: int) -> None:
        if not event.requests:
            return
        self._blocks.add((event.key_id, position // BLOCK))
        self._day = event.at // DAY
        for denial in event.requests:
            self._refusals[request_digest(denial.request_id), position] = self._day


def key_digest(key_id: str) -> int:
    """A key in 32 bits: what is found is compared with the key itself."""
    return crc32(key_id.encode()) - 2**31


def request_digest(request_id: str) -> int:
    """A request id in 64 bits, whatever is in it: what is found is compared with the id itself."""
    digest = blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


# -- questions ------------------------------------------------------------------------------------

Kind = Literal["charge", "reservation", "refund", "capture", "release", "expiry", "refusal"]
_KINDS: Final[dict[type[e.Event], Kind]] = {
    e.UsageCharged: "charge",
    e.CreditsReserved: "reservation",
    e.UsageRefunded: "refund",
    e.ReservationCaptured: "capture",
    e.ReservationReleased: "release",
    e.ReservationExpired: "expiry",
}
_SHOWN: Final[tuple[type[e.Event], ...]] = (*_KINDS, e.UsageDenied)
_TYPES: Final = tuple(str(event_type.__struct_config__.tag) for event_type in _SHOWN)


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
    """All that was given back of a charge so far."""
    status: Literal["open", "captured", "released", "expired"] | None = None
    """Of a reservation, with the figures below."""
    expires_at: Instant | None = None
    held_micros: int | None = None
    captured_micros: int | None = None
    uncovered_micros: int | None = None


class RequestPage(NamedTuple):
    """Lines, newest first, and where the next page begins."""

    entries: list[RequestEntry]
    next_cursor: str | None


async def find_request(
    queries: Queries,
    events: EventReader,
    request_id: str,
    *,
    organization_id: str | None = None,
    now: Instant,
) -> list[RequestEntry]:
    """What stands under a request id, in one organization or in all of them, oldest first.

    What was granted is found at once and for ever; what was refused, once it is projected and for
    REFUSALS_KEPT_DAYS.
    """
    positions = [
        position
        async for organizations in _organizations(queries, organization_id)
        for position in await events.claimed([request_claim(one, request_id) for one in organizations])
    ]
    placed = await events.at(positions)
    granted = [
        one
        for one in placed
        if type(one.event) in _KINDS and getattr(one.event, "request_id", None) == request_id
    ]
    entries = await _with_settlements(queries, events, granted)
    refused = await _refusals(queries, events, request_id, now)
    found = [entry for entry in refused if organization_id in {None, entry.organization_id}]
    return sorted((*entries, *found), key=lambda entry: entry.position)


async def find_charge(queries: Queries, events: EventReader, charge_id: str) -> RequestEntry | None:
    """A charge (of a captured reservation, too) by its id, with what was given back of it."""
    return await _find_placed(queries, events, "chg", charge_id)


async def find_reservation(queries: Queries, events: EventReader, reservation_id: str) -> RequestEntry | None:
    """A reservation by its id, as it stands."""
    return await _find_placed(queries, events, "rsv", reservation_id)


async def list_requests(
    queries: Queries,
    events: EventReader,
    key_id: str,
    *,
    limit: int = 50,
    cursor: str | None = None,
    now: Instant,
) -> RequestPage:
    """One key's lines, newest first, also of a deleted key. A refused batch of requests stays together."""
    before = 2**62 if cursor is None else decode_number(cursor)
    found: list[Placed] = []
    blocks = "SELECT block FROM {schema}.request_blocks WHERE key_digest = %s AND block <= %s"
    next_block = min(before // BLOCK, 2**31 - 1)
    while len(found) <= limit:
        rows = await queries.rows(
            f"{blocks} ORDER BY block DESC LIMIT %s", (key_digest(key_id), next_block, _BLOCKS_AT_ONCE)
        )
        for first, last in _runs([block for (block,) in rows]):
            placed = await events.between(first * BLOCK, last * BLOCK + BLOCK - 1, _TYPES)
            of_key = [one for one in placed if getattr(one.event, "key_id", None) == key_id]
            found += [one for one in reversed(of_key) if one.position < before]
            if len(found) > limit:
                break
        if len(rows) < _BLOCKS_AT_ONCE:
            break
        next_block = rows[-1][0] - 1
    entries = await _entries(queries, events, found[:limit], now)
    next_cursor = encode_number(found[limit - 1].position) if len(found) > limit else None
    return RequestPage(entries, next_cursor)


_BLOCKS_AT_ONCE: Final = 64
_LONGEST_RUN: Final = 4


def _runs(blocks: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbouring blocks (given newest first) as ranges: a hot key's are read a few at a time."""
    run: list[int] = []
    for block in blocks:
        if run and (block != run[-1] - 1 or len(run) == _LONGEST_RUN):
            yield run[-1], run[0]
            run = []
        run.append(block)
    if run:
        yield run[-1], run[0]


async def _organizations(queries: Queries, organization_id: str | None) -> AsyncIterator[list[str]]:
    if organization_id is not None:
        yield [organization_id]
        return
    after = ""
    while ids := await organization_ids(queries, after=after):
        yield ids
        after = ids[-1]


async def _find_placed(queries: Queries, events: EventReader, kind: str, wanted: str) -> RequestEntry | None:
    if not is_id(kind, wanted):
        return None
    field = "charge_id" if kind == "chg" else "reservation_id"
    placed = [
        one
        for one in await events.at([place_of(wanted)[1]])
        if type(one.event) in _KINDS and getattr(one.event, field, None) == wanted
    ]
    entries = await _with_settlements(queries, events, placed)
    return entries[0] if entries else None


async def _entries(
    queries: Queries, events: EventReader, placed: Sequence[Placed], now: Instant
) -> list[RequestEntry]:
    """Lines in the order of what was found, refusals unpacked."""
    granted = await _with_settlements(queries, events, [one for one in placed if type(one.event) in _KINDS])
    by_position = {entry.position: [entry] for entry in granted}
    for position, _, event in placed:
        if isinstance(event, e.UsageDenied):
            by_position[position] = _refused(position, event, now)
    return [entry for one in placed for entry in by_position[one.position]]


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
        for entry in _refused(position, event, now)
        if entry.request_id == request_id
    ]


def _refused(position: int, event: e.UsageDenied, now: Instant) -> list[RequestEntry]:
    if event.at // DAY <= now // DAY - REFUSALS_KEPT_DAYS:
        return []
    return [
        RequestEntry(
            kind="refusal",
            position=position,
            at=denial.at,
            organization_id=event.organization_id,
            key_id=event.key_id,
            request_id=denial.request_id,
            amount_micros=denial.amount_micros,
            code=denial.code,
        )
        for denial in event.requests
    ]


async def _with_settlements(
    queries: Queries, events: EventReader, placed: Sequence[Placed]
) -> list[RequestEntry]:
    """What happened to each charge and reservation since: read from the log where anything did."""
    statement = "SELECT subject, position FROM {schema}.settlements WHERE subject = ANY(%s) ORDER BY position"
    rows = await queries.rows(statement, ([one.position for one in placed],)) if placed else []
    later = {one.position: one.event for one in await events.at([position for _, position in rows])}
    settled: dict[int, list[e.Event]] = {}
    for subject, position in rows:
        settled.setdefault(subject, []).append(later[position])
    return [_entry(one, settled.get(one.position, [])) for one in placed]


def _entry(placed: Placed, settlements: Sequence[e.Event]) -> RequestEntry:
    event: Any = placed.event  # one of _KINDS
    entry = RequestEntry(
        kind=_KINDS[type(event)],
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
