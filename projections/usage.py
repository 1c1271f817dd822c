"""Usage: counters by the hour, for each combination of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from domain.projecting import (
    Column,
    Handler,
    ProjectionTable,
    Queries,
    SchemaTransaction,
    Writing,
    bigints,
    integers,
    texts,
    uuids,
)
from keyledger_language import events as e
from keyledger_language.instants import SECOND, Instant
from projections.pages import indexed, storable

HOUR: Final = 3_600 * SECOND
MOST: Final = 2**62 - 1
_MOST_REMEMBERED: Final = 100_000

_DEFINITION: Final = """
-- A combination of dimensions is spelled out once; counters name it by a digest of its parts.
CREATE TABLE {schema}.usage_dimensions (
    dimension uuid PRIMARY KEY,
    organization_id text COLLATE "C" NOT NULL,
    key_id text COLLATE "C" NOT NULL,
    project_id text COLLATE "C",
    model text COLLATE "C",
    provider text COLLATE "C",
    tenant_org_id text COLLATE "C",
    tenant_user_id text COLLATE "C"
);
CREATE INDEX ON {schema}.usage_dimensions (organization_id);
CREATE INDEX ON {schema}.usage_dimensions (key_id);

-- An hour is the number of hours since 1970. Money counts in the hour of the charge or the reservation
-- that it belongs to. Sums stop at 2^62 - 1 (4.6 trillion units of one key and model in one hour): two of
-- them can always be added, and the projector never meets a number that its column refuses.
CREATE TABLE {schema}.usage_hours (
    dimension uuid NOT NULL,
    hour integer NOT NULL,
    requests bigint NOT NULL,
    charged_micros bigint NOT NULL,
    refunds bigint NOT NULL,
    refunded_micros bigint NOT NULL,
    PRIMARY KEY (dimension, hour)
) WITH (fillfactor = 60); -- hot rows are updated in place

CREATE TABLE {schema}.verification_hours (
    key_id text COLLATE "C" NOT NULL,
    hour integer NOT NULL,
    verifications bigint NOT NULL,
    PRIMARY KEY (key_id, hour)
);

CREATE TABLE {schema}.denial_hours (
    key_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C",
    code text COLLATE "C" NOT NULL,
    hour integer NOT NULL,
    denials bigint NOT NULL,
    PRIMARY KEY (key_id, hour, code)
);
CREATE INDEX ON {schema}.denial_hours (organization_id, hour);
"""
# Rows are written in the order of an index: each of its pages, and often the table's, is visited once.
_SAVE_DIMENSIONS: Final = """
INSERT INTO {schema}.usage_dimensions SELECT * FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s)
    AS d (dimension, organization_id, key_id) ORDER BY key_id COLLATE "C"
ON CONFLICT DO NOTHING
"""
_SAVE_HOURS: Final = """
INSERT INTO {schema}.usage_hours AS u (dimension, hour, requests, charged_micros, refunds, refunded_micros)
SELECT * FROM unnest(%s, %s, %s, %s, %s, %s) ORDER BY 1, 2
ON CONFLICT (dimension, hour) DO UPDATE SET requests = u.requests + excluded.requests,
    charged_micros = least(u.charged_micros + excluded.charged_micros, 4611686018427387903),
    refunds = u.refunds + excluded.refunds,
    refunded_micros = least(u.refunded_micros + excluded.refunded_micros, 4611686018427387903)
"""
_SAVE_VERIFICATIONS: Final = """
INSERT INTO {schema}.verification_hours AS v SELECT * FROM unnest(%s, %s, %s)
ON CONFLICT (key_id, hour) DO UPDATE SET verifications = v.verifications + excluded.verifications
"""
_SAVE_DENIALS: Final = """
INSERT INTO {schema}.denial_hours AS d SELECT * FROM unnest(%s, %s, %s, %s, %s)
ON CONFLICT (key_id, hour, code) DO UPDATE SET denials = d.denials + excluded.denials
"""

_DIMENSIONS: Final = (
    "organization_id",
    "key_id",
    "project_id",
    "model",
    "provider",
    "tenant_org_id",
    "tenant_user_id",
)
_values_of: Final = attrgetter(*_DIMENSIONS)
_packed: Final = msgspec.msgpack.Encoder().encode
_unpacked: Final = msgspec.msgpack.Decoder(tuple[str | None, ...]).decode

Dimension = bytes
"""The values of a combination, packed: one value to hash and compare instead of seven."""


class Usage:
    """Counters of money and requests, verifications and denials."""

    name = "usage"
    version = 1
    definition = _DEFINITION
    tables: tuple[ProjectionTable, ...] = (
        ProjectionTable("usage_dimensions", ("dimension",)),
        ProjectionTable("usage_hours", ("dimension", "hour")),
        ProjectionTable("verification_hours", ("key_id", "hour")),
        ProjectionTable("denial_hours", ("key_id", "hour", "code")),
    )

    def __init__(self) -> None:
        self._hours: Hours = {}
        self._digests: dict[Dimension, bytes] = {}
        """Combinations that are known to be written, with their digests."""
        self._verifications: dict[tuple[str, int], int] = {}
        self._denials: dict[tuple[str, str | None, str, int], int] = {}

    def handlers(self) -> Mapping[type[e.Event], Handler]:
        """Charges, reservations, captures, refunds and sightings."""
        return {
            e.UsageCharged: self._charged,
            e.CreditsReserved: self._reserved,
            e.ReservationCaptured: self._captured,
            e.UsageRefunded: self._refunded,
            e.KeysSeen: self._seen,
            e.UsageDenied: self._denied,
        }

    def forget(self) -> None:
        """Drop what is not written, and what may not have been written."""
        self._hours, self._digests, self._verifications, self._denials = {}, {}, {}, {}

    def held(self) -> int:
        """The number of sums."""
        hours = sum(map(len, self._hours.values()))
        return hours + len(self._verifications) + len(self._denials)

    def take(self) -> Writing:
        """Add a batch's sums, one statement per table."""
        hours, self._hours = self._hours, {}
        verifications, self._verifications = self._verifications, {}
        denials, self._denials = self._denials, {}

        def write(session: SchemaTransaction) -> None:
            if hours:
                _add_hours(session, hours, self._digests)
            if verifications:
                _add_verifications(session, verifications)
            if denials:
                _add_denials(session, denials)

        return write

    # -- events -----------------------------------------------------------------------------------

    def _charged(self, events: Sequence[e.UsageCharged], _first: int) -> None:
        sums, start, end = _NO_SUMS, 0, 0
        for dimension, event in zip(map(_packed, map(_values_of, events)), events, strict=True):
            if not start <= event.at < end:
                hour = event.at // HOUR
                sums, start, end = self._hours.setdefault(hour, {}), hour * HOUR, (hour + 1) * HOUR
            counts = sums.get(dimension)
            if counts is None:
                sums[dimension] = [1, event.amount_micros, 0, 0]
            else:
                counts[0] += 1
                counts[1] += event.amount_micros

    def _reserved(self, events: Sequence[e.CreditsReserved], _first: int) -> None:
        for event in events:
            self._counts(event, event.at)[0] += 1

    def _captured(self, events: Sequence[e.ReservationCaptured], _first: int) -> None:
        for event in events:
            self._counts(event, event.window_at)[1] += event.amount_micros

    def _refunded(self, events: Sequence[e.UsageRefunded], _first: int) -> None:
        for event in events:
            counts = self._counts(event, event.window_at)
            counts[2] += 1
            counts[3] += event.amount_micros

    def _counts(self, event: e.Event, at: Instant) -> list[int]:
        sums = self._hours.setdefault(at // HOUR, {})
        return sums.setdefault(_packed(_values_of(event)), [0, 0, 0, 0])

    def _seen(self, events: Sequence[e.KeysSeen], _first: int) -> None:
        for event in events:
            for key_id, at, verifications in event.seen:
                hour = (key_id, at // HOUR)
                self._verifications[hour] = self._verifications.get(hour, 0) + verifications

    def _denied(self, events: Sequence[e.UsageDenied], _first: int) -> None:
        for event in events:
            for code, denials in event.counts.items():
                name = (event.key_id, event.organization_id, storable(code), event.at // HOUR)
                self._denials[name] = self._denials.get(name, 0) + denials


_NO_SUMS: Final[dict[Dimension, list[int]]] = {}

Hours = dict[int, dict[Dimension, list[int]]]
"""By hour and dimension: requests, charged, refunds, refunded."""


def _add_hours(session: SchemaTransaction, hours: Hours, digests: dict[Dimension, bytes]) -> None:
    """`digests`: those of combinations that are already written; new ones are added to it."""
    if len(digests) > _MOST_REMEMBERED:
        digests.clear()
    new: dict[Dimension, bytes] = {}
    names: list[bytes] = []
    for sums in hours.values():
        for dimension in sums:
            digest = digests.get(dimension)
            if digest is None:
                digest = new[dimension] = _digest(dimension)
            names.append(digest)
    if new:
        values = zip(*map(_unpacked, new), strict=True)
        session.write(_SAVE_DIMENSIONS, uuids(list(new.values())), *map(_texts, values))
        digests.update(new)
    every = [counts for sums in hours.values() for counts in sums.values()]
    requests, charged, refunds, refunded = zip(*every, strict=True)
    session.write(
        _SAVE_HOURS,
        uuids(names),
        integers([hour for hour, sums in hours.items() for _ in sums]),
        bigints(requests),
        bigints([min(micros, MOST) for micros in charged]),
        bigints(refunds),
        bigints([min(micros, MOST) for micros in refunded]),
    )


def _add_verifications(session: SchemaTransaction, verifications: dict[tuple[str, int], int]) -> None:
    key_ids, hours = zip(*verifications, strict=True)
    counts = list(verifications.values())
    session.write(_SAVE_VERIFICATIONS, texts(key_ids), integers(hours), bigints(counts))


def _add_denials(session: SchemaTransaction, denials: dict[tuple[str, str | None, str, int], int]) -> None:
    key_ids, organization_ids, codes, hours = zip(*denials, strict=True)
    names = (texts(key_ids), texts(organization_ids), texts(codes))
    session.write(_SAVE_DENIALS, *names, integers(hours), bigints(list(denials.values())))


def _digest(dimension: Dimension) -> bytes:
    return blake2b(dimension, digest_size=16).digest()


def _texts(values: Sequence[str | None]) -> Column:
    stored = {value: None if value is None else storable(value) for value in set(values)}
    return texts([stored[value] for value in values])


# -- queries --------------------------------------------------------------------------------------

Bucket = Literal["hour", "day", "month"]
By = Literal["model", "project", "provider", "tenant", "key"]
_BY: Final[dict[By, tuple[str, ...]]] = {
    "model": ("model",),
    "project": ("project_id",),
    "provider": ("provider",),
    "tenant": ("tenant_org_id", "tenant_user_id"),
    "key": ("key_id",),
}
_START: Final = "'1970-01-01'::timestamp"
_BUCKETS: Final[dict[Bucket, str]] = {
    "hour": "hour",
    "day": "hour / 24 * 24",
    "month": (
        f"(extract(epoch FROM date_trunc('month', {_START} + hour * interval '1 hour')) / 3600)::integer"
    ),
}


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one bucket, for one value of the requested dimension."""

    start: Instant
    group: tuple[str | None, ...]
    """The dimension's value (a tenant's organization and user: two); empty if none was requested."""
    requests: int
    charged_micros: int
    refunds: int
    refunded_micros: int

    @property
    def spent_micros(self) -> int:
        """What was charged and not refunded."""
        return self.charged_micros - self.refunded_micros


class DenialRow(NamedTuple):
    """How often uses were refused with one code in one bucket."""

    start: Instant
    code: str
    denials: int


class VerificationRow(NamedTuple):
    """How often keys were verified in one bucket."""

    start: Instant
    verifications: int


async def list_usage(
    queries: Queries,
    *,
    organization_id: str | None = None,
    key_id: str | None = None,
    from_at: Instant,
    to_at: Instant,
    bucket: Bucket = "day",
    by: By | None = None,
) -> list[UsageRow]:
    """Usage of an organization or a key (with both: that key in that organization), oldest first.

    Hours that begin at or after `from_at` and before `to_at` count, in full; buckets are in UTC.
    """
    where, values = _of(organization_id, key_id)
    groups = _BY[_one_of(by, By)] if by is not None else ()
    start = _BUCKETS[_one_of(bucket, Bucket)]
    columns = ", ".join((f"{start} AS start", *groups))
    order = ", ".join(str(number) for number in range(1, len(groups) + 2))
    statement = f"""
        SELECT {columns}, sum(requests), sum(charged_micros), sum(refunds), sum(refunded_micros)
        FROM {{schema}}.usage_dimensions JOIN {{schema}}.usage_hours USING (dimension)
        WHERE {where} AND hour >= %s AND hour < %s GROUP BY {order} ORDER BY {order}
    """
    rows = await queries.rows(statement, (*values, *_hours(from_at, to_at)))
    width = len(groups)
    return [
        UsageRow(
            start=row[0] * HOUR,
            group=row[1 : 1 + width],
            requests=int(row[1 + width]),
            charged_micros=int(row[2 + width]),
            refunds=int(row[3 + width]),
            refunded_micros=int(row[4 + width]),
        )
        for row in rows
    ]


async def list_denials(
    queries: Queries,
    *,
    organization_id: str | None = None,
    key_id: str | None = None,
    from_at: Instant,
    to_at: Instant,
    bucket: Bucket = "day",
) -> list[DenialRow]:
    """Refused uses of known keys, by code."""
    where, values = _of(organization_id, key_id)
    statement = f"""
        SELECT {_BUCKETS[_one_of(bucket, Bucket)]} AS start, code, sum(denials) FROM {{schema}}.denial_hours
        WHERE {where} AND hour >= %s AND hour < %s GROUP BY 1, 2 ORDER BY 1, 2
    """
    rows = await queries.rows(statement, (*values, *_hours(from_at, to_at)))
    return [DenialRow(start * HOUR, code, int(denials)) for start, code, denials in rows]


async def list_verifications(
    queries: Queries,
    *,
    organization_id: str | None = None,
    key_id: str | None = None,
    from_at: Instant,
    to_at: Instant,
    bucket: Bucket = "day",
) -> list[VerificationRow]:
    """Verifications without a charge; they are counted about once a minute."""
    where, values = _of(organization_id, key_id, key_column="v.key_id")
    statement = f"""
        SELECT {_BUCKETS[_one_of(bucket, Bucket)]} AS start, sum(verifications)
        FROM {{schema}}.verification_hours AS v JOIN {{schema}}.keys AS k ON k.id = v.key_id
        WHERE {where} AND hour >= %s AND hour < %s GROUP BY 1 ORDER BY 1
    """
    rows = await queries.rows(statement, (*values, *_hours(from_at, to_at)))
    return [VerificationRow(start * HOUR, int(count)) for start, count in rows]


def _of(
    organization_id: str | None, key_id: str | None, key_column: str = "key_id"
) -> tuple[str, tuple[str, ...]]:
    """The condition that selects the organization, the key, or both."""
    wanted = {"organization_id": indexed(organization_id), key_column: indexed(key_id)}
    named = {column: value for column, value in wanted.items() if value is not None}
    assert named, "usage is of an organization or of a key"
    return " AND ".join(f"{column} = %s" for column in named), tuple(named.values())


def _hours(from_at: Instant, to_at: Instant) -> tuple[int, int]:
    return -(-from_at // HOUR), -(-to_at // HOUR)


def _one_of(value: Any, choices: Any) -> Any:  # a Literal, and one of its texts
    if value not in get_args(choices):
        raise ValueError(f"{value!r:.40} is not one of {', '.join(get_args(choices))}")
    return value
