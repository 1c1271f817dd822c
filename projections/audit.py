"""Who did what, when, from where: every event except metered use itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args

import msgspec

from domain.projecting import (
    EventReader,
    FoundEvent,
    Handler,
    ProjectionTable,
    Queries,
    SchemaTransaction,
    Writing,
    bigints,
    texts,
)
from keyledger_language import events as e
from keyledger_language.instants import Instant
from projections.field_changes import before_and_after
from projections.pages import Filters, decode_number, encode_number, indexed

METERED: Final = (
    e.UsageCharged,
    e.CreditsReserved,
    e.ReservationCaptured,
    e.ReservationReleased,
    e.ReservationExpired,
    e.UsageDenied,
    e.KeysSeen,
)
"""Events that the request log and the usage show, and the audit log does not."""
AUDITED: Final[tuple[type[e.Event], ...]] = tuple(t for t in get_args(e.LedgerEvent) if t not in METERED)

_DEFINITION: Final = """
-- What one looks for; the rest of a line is read from the log at its position, so that personal fields
-- stand in one place only and are gone with their key.
CREATE TABLE {schema}.audit (
    position bigint PRIMARY KEY,
    at bigint NOT NULL, -- microseconds since 1970
    actor text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C",
    key_id text COLLATE "C",
    subject text COLLATE "C",
    request_id text COLLATE "C"
);
CREATE INDEX ON {schema}.audit (at, position);
CREATE INDEX ON {schema}.audit (organization_id, position);
CREATE INDEX ON {schema}.audit (key_id, position) WHERE key_id IS NOT NULL;
CREATE INDEX ON {schema}.audit (actor, position);
CREATE INDEX ON {schema}.audit (action, position);
CREATE INDEX ON {schema}.audit (request_id, position) WHERE request_id IS NOT NULL;
"""
_SAVE: Final = "INSERT INTO {schema}.audit SELECT * FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s)"


class _Line(NamedTuple):
    position: int
    at: Instant
    actor: str
    action: str
    organization_id: str | None
    key_id: str | None
    subject: str | None
    request_id: str | None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log."""

    position: int
    at: Instant
    actor: str
    action: str
    organization_id: str | None
    key_id: str | None
    subject: str | None
    ip: str | None
    user_agent: str | None
    request_id: str | None
    """The trace id of the HTTP request that caused it."""
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(NamedTuple):
    """Lines in order, and where the next page begins."""

    entries: list[AuditEntry]
    next_cursor: str | None


class Audit:
    """One row per event that a person may have to answer for."""

    name = "audit"
    version = 1
    definition = _DEFINITION
    tables: tuple[ProjectionTable, ...] = (ProjectionTable("audit", ("position",)),)

    def __init__(self) -> None:
        self._lines: list[_Line] = []

    def handlers(self) -> Mapping[type[e.Event], Handler]:
        """All events except metered use."""
        return dict.fromkeys(AUDITED, self._audited)

    def held(self) -> int:
        """The number of lines."""
        return len(self._lines)

    def take(self) -> Writing:
        """Append the lines."""
        lines, self._lines = self._lines, []

        def write(session: SchemaTransaction) -> None:
            if lines:
                columns = list(zip(*lines, strict=True))
                numbers = (bigints(columns[0]), bigints(columns[1]))
                session.write(_SAVE, *numbers, *(texts(column) for column in columns[2:]))

        return write

    def forget(self) -> None:
        """Drop what is not written."""
        self._lines = []

    def _audited(self, events: Sequence[e.Event], first: int) -> None:
        self._lines += [_line(event, position) for position, event in enumerate(events, first)]


def _line(event: e.Event, position: int) -> _Line:
    return _Line(
        position,
        event.at,
        event.actor,
        e.public_name(event),
        event.organization_id,
        _key_of(event),
        _subject_of(event),
        indexed(_origin(event).request_id),
    )


_NOWHERE: Final = e.Origin()
_SUBJECTS: Final = ("project_id", "keyspace_id", "plan_id", "charge_id", "subject_id", "organization_id")


def _origin(event: e.Event) -> e.Origin:
    if event.private is None or event.private.origin is None:
        return _NOWHERE
    return event.private.origin


def _key_of(event: e.Event) -> str | None:
    if isinstance(event, e.ThresholdReached):
        return event.subject_id if event.level == "key" else None
    return getattr(event, "key_id", None)


def _subject_of(event: e.Event) -> str | None:
    if isinstance(event, e.KeyEvent):
        return event.key_id
    return next((value for name in _SUBJECTS if (value := getattr(event, name, None)) is not None), None)


# -- queries --------------------------------------------------------------------------------------


def entry_of(position: int, event: e.Event) -> AuditEntry:
    """The audit line that an event makes."""
    origin = _origin(event)
    before, after = before_and_after(event)
    return AuditEntry(
        position=position,
        at=event.at,
        actor=event.actor,
        action=e.public_name(event),
        organization_id=event.organization_id,
        key_id=_key_of(event),
        subject=_subject_of(event),
        ip=origin.ip,
        user_agent=origin.user_agent,
        request_id=origin.request_id,
        reason=None if event.private is None else event.private.reason,
        before=before,
        after=after,
    )


async def list_audit(
    queries: Queries,
    events: EventReader,
    *,
    organization_id: str | None = None,
    key_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    from_at: Instant | None = None,
    to_at: Instant | None = None,
    request_id: str | None = None,
    newest_first: bool = True,
    limit: int = 50,
    cursor: str | None = None,
) -> AuditPage:
    """Lines that pass all filters; `from_at` is included, `to_at` is not."""
    filters = Filters()
    filters.only("true")
    filters.equal(
        organization_id=organization_id, key_id=key_id, actor=actor, action=action, request_id=request_id
    )
    # Time never goes back in the log: a time is a position, found once, and the scan stays in order.
    if from_at is not None:
        first = "SELECT position FROM {schema}.audit WHERE at >= %s ORDER BY at, position LIMIT 1"
        filters.only(f"position >= ({first})", from_at)
    if to_at is not None:
        last = "SELECT position FROM {schema}.audit WHERE at < %s ORDER BY at DESC, position DESC LIMIT 1"
        filters.only(f"position <= ({last})", to_at)
    if cursor is not None:
        filters.only("position < %s" if newest_first else "position > %s", decode_number(cursor))
    statement = (
        f"SELECT position FROM {{schema}}.audit WHERE {' AND '.join(filters.conditions)}"
        f" ORDER BY position {'DESC' if newest_first else 'ASC'} LIMIT %s"
    )
    positions = [row[0] for row in await queries.rows(statement, [*filters.values, limit + 1])]
    placed = await events.at(positions[:limit])
    entries = [entry_of(one.position, one.event) for one in placed]
    if newest_first:
        entries.reverse()
    next_cursor = encode_number(positions[limit - 1]) if len(positions) > limit else None
    return AuditPage(entries, next_cursor)


async def key_history(
    events: EventReader,
    key_id: str,
    *,
    newest_first: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> AuditPage:
    """What happened to one key, oldest first: its own stream of the log, which never lags behind a write."""
    start = 2**62 if newest_first else 0
    after = start if cursor is None else decode_number(cursor)
    placed = await events.stream(key_id, None, after=after, limit=limit + 1, newest_first=newest_first)
    return AuditPage([entry_of(one.position, one.event) for one in placed[:limit]], _next(placed, limit))


def _next(placed: list[FoundEvent], limit: int) -> str | None:
    return encode_number(placed[limit - 1].version) if len(placed) > limit else None
