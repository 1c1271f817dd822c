"""Keys as they are listed, filtered, sorted and searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from domain.evolve import evolve
from domain.keys import Key, Status
from domain.projecting import (
    Handler,
    ProjectionTable,
    Queries,
    SchemaTransaction,
    Writing,
    bigints,
    booleans,
    byte_strings,
    integers,
    texts,
)
from domain.state import State
from keyledger_language import events as e
from keyledger_language.instants import SECOND, Instant
from projections.pages import (
    Filters,
    Page,
    Sort,
    containing,
    indexed,
    page,
    searchable,
    sort_of,
    sortable,
    storable,
)

NEVER: Final = 2**63 - 1
"""`expires_at` of a key that does not expire: sorts after all others."""
NOT_YET: Final = 0
"""`last_used_at` of a key that was never used."""
LIVE, REVOKED, DELETED = 0, 1, 2

_MINUTE: Final = 60 * SECOND
_MOST_REMEMBERED: Final = 200_000
_SEPARATOR: Final = "\x1f"

KEY_EVENTS: Final = (
    e.KeyCreated,
    e.KeyImported,
    e.KeyRotated,
    e.KeyDisabled,
    e.KeyEnabled,
    e.KeyRevoked,
    e.KeyDeleted,
    e.KeyExpired,
    e.KeyRenamed,
    e.OwnerAssigned,
    e.MetadataSet,
    e.TagsSet,
    e.AllowedIpsSet,
    e.EnvironmentSet,
    e.PlanAssigned,
    e.ScopesEdited,
    e.QuotasSet,
    e.RateLimitsSet,
    e.ExpirySet,
)
"""The events that change a key's row."""

_DEFINITION: Final = """
CREATE TABLE {schema}.keys (
    id text COLLATE "C" PRIMARY KEY,
    organization_id text COLLATE "C",
    keyspace_id text COLLATE "C" NOT NULL,
    visibility integer NOT NULL, -- 0 live, 1 revoked, 2 deleted
    disabled boolean NOT NULL,
    kind text COLLATE "C" NOT NULL,
    environment text COLLATE "C",
    plan_id text COLLATE "C",
    owner_id text COLLATE "C",
    name text COLLATE "C" NOT NULL,
    sort_name text COLLATE "C" NOT NULL,
    search text COLLATE "C" NOT NULL,
    tags text[] COLLATE "C" NOT NULL,
    projects text[] COLLATE "C", -- null: all of them
    created_at bigint NOT NULL, -- times are microseconds since 1970
    expires_at bigint NOT NULL,
    revoked_at bigint,
    version integer NOT NULL,
    position bigint NOT NULL,
    document bytea NOT NULL -- the whole key, as msgpack
) WITH (fillfactor = 85);
CREATE INDEX ON {schema}.keys (visibility, created_at, id);
CREATE INDEX ON {schema}.keys (visibility, sort_name, id);
CREATE INDEX ON {schema}.keys (visibility, expires_at, id);
CREATE INDEX ON {schema}.keys (organization_id, visibility, created_at, id);
CREATE INDEX ON {schema}.keys (organization_id, visibility, sort_name, id);
CREATE INDEX ON {schema}.keys (organization_id, visibility, expires_at, id);
CREATE INDEX ON {schema}.keys (keyspace_id, visibility, created_at, id);
CREATE INDEX ON {schema}.keys (owner_id, visibility, created_at, id) WHERE owner_id IS NOT NULL;
CREATE INDEX ON {schema}.keys (visibility, created_at, id) WHERE disabled;
CREATE INDEX ON {schema}.keys USING gin (tags) WHERE tags <> '{}';
CREATE INDEX ON {schema}.keys USING gin (projects) WHERE projects IS NOT NULL;

-- When each key was used last, apart: a use is written to three indexes, and not to all those of `keys`.
CREATE TABLE {schema}.key_uses (
    id text COLLATE "C" PRIMARY KEY,
    organization_id text COLLATE "C",
    visibility integer NOT NULL,
    last_used_at bigint NOT NULL DEFAULT 0 -- to the minute: a hot key's row is not rewritten all the time
) WITH (fillfactor = 80);
CREATE INDEX ON {schema}.key_uses (visibility, last_used_at, id);
CREATE INDEX ON {schema}.key_uses (organization_id, visibility, last_used_at, id);
"""

_FIND: Final = "SELECT document FROM {schema}.keys WHERE id = ANY(%s)"
_SAVE: Final = f"""
INSERT INTO {{schema}}.keys (id, organization_id, keyspace_id, visibility, disabled, kind, environment,
    plan_id, owner_id, name, sort_name, search, tags, projects, created_at, expires_at, revoked_at,
    version, position, document)
SELECT id, organization_id, keyspace_id, visibility, disabled, kind, environment, plan_id, owner_id, name,
    sort_name, search, string_to_array(tags, E'{_SEPARATOR}'), string_to_array(projects, E'{_SEPARATOR}'),
    created_at, expires_at, revoked_at, version, position, document
FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    AS k (id, organization_id, keyspace_id, visibility, disabled, kind, environment, plan_id, owner_id, name,
        sort_name, search, tags, projects, created_at, expires_at, revoked_at, version, position, document)
ON CONFLICT (id) DO UPDATE SET organization_id = excluded.organization_id,
    keyspace_id = excluded.keyspace_id, visibility = excluded.visibility, disabled = excluded.disabled,
    kind = excluded.kind, environment = excluded.environment, plan_id = excluded.plan_id,
    owner_id = excluded.owner_id, name = excluded.name, sort_name = excluded.sort_name,
    search = excluded.search, tags = excluded.tags, projects = excluded.projects,
    created_at = excluded.created_at, expires_at = excluded.expires_at, revoked_at = excluded.revoked_at,
    version = excluded.version, position = excluded.position, document = excluded.document
"""
_SAVE_UNUSED: Final = """
INSERT INTO {schema}.key_uses AS k (id, organization_id, visibility) SELECT * FROM unnest(%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET organization_id = excluded.organization_id, visibility = excluded.visibility
WHERE (k.organization_id, k.visibility) IS DISTINCT FROM (excluded.organization_id, excluded.visibility)
"""
_USE: Final = """
UPDATE {schema}.key_uses AS k SET last_used_at = u.at
FROM (SELECT * FROM unnest(%s, %s) AS u (id, at) ORDER BY id COLLATE "C") AS u
WHERE k.id = u.id AND k.last_used_at < u.at
"""

_decode = msgspec.msgpack.Decoder(Key).decode
_encode = msgspec.msgpack.Encoder().encode


class Lookup:
    """One row per key."""

    name = "lookup"
    version = 2
    definition = _DEFINITION
    tables: tuple[ProjectionTable, ...] = (
        ProjectionTable("keys", ("id",)),
        ProjectionTable("key_uses", ("id",)),
    )

    def __init__(self) -> None:
        self._changes: list[tuple[e.KeyEvent, int]] = []
        self._used: dict[str, Instant] = {}
        self._written: dict[str, Instant] = {}
        """The minutes that are known to be written: a hot key costs a look-up here, not an UPDATE."""

    def handlers(self) -> Mapping[type[e.Event], Handler]:
        """Changes of keys, and the events that show that a key was used."""
        return {
            **dict.fromkeys(KEY_EVENTS, self._changed),
            e.UsageCharged: self._charged,
            e.CreditsReserved: self._charged,
            e.KeysSeen: self._seen,
        }

    def held(self) -> int:
        """Used keys, and changes, which count more: they hold whole events, and take more writing."""
        return len(self._used) + 4 * len(self._changes)

    def take(self) -> Writing:
        """Write keys first: a use may be of a key that is new in this batch."""
        changes, self._changes = self._changes, []
        used, self._used = self._used, {}
        if len(self._written) > _MOST_REMEMBERED:
            self._written = {}

        def write(session: SchemaTransaction) -> None:
            if changes:
                _change_keys(session, changes)
            if used:
                session.write(_USE, texts(list(used)), bigints(list(used.values())))

        return write

    def forget(self) -> None:
        """Drop what is not written, and what may not have been written."""
        self._changes, self._used, self._written = [], {}, {}

    def _changed(self, events: Sequence[e.KeyEvent], first: int) -> None:
        self._changes += [(event, position) for position, event in enumerate(events, first)]

    def _charged(self, events: Sequence[e.Metered], _first: int) -> None:
        written = self._written.get
        for event in events:
            # Nearly always the minute is already written: this line is all that a charge costs here.
            if written(event.key_id, NOT_YET) + _MINUTE <= event.at:
                self._use(event.key_id, event.at)

    def _seen(self, events: Sequence[e.KeysSeen], _first: int) -> None:
        for event in events:
            for key_id, at, _ in event.seen:
                self._use(key_id, at)

    def _use(self, key_id: str, at: Instant) -> None:
        minute = at - at % _MINUTE
        if self._written.get(key_id, NOT_YET) < minute:
            self._written[key_id] = self._used[key_id] = minute


def _change_keys(session: SchemaTransaction, changes: list[tuple[e.KeyEvent, int]]) -> None:
    """Load the rows that changed, fold the events into them, write them back."""
    books = State()
    wanted = {event.key_id for event, _ in changes}
    for (document,) in session.rows(_FIND, texts(list(wanted))):
        key = _decode(document)
        books.keys[key.id] = key
    for event, position in changes:
        evolve(books, event, position)
    _write_keys(session, list(books.keys.values()))


def _write_keys(session: SchemaTransaction, keys: list[Key]) -> None:
    session.write(
        _SAVE,
        texts([key.id for key in keys]),
        texts([key.organization_id for key in keys]),
        texts([key.keyspace_id for key in keys]),
        integers([_visibility(key) for key in keys]),
        booleans([key.disabled for key in keys]),
        texts([key.kind for key in keys]),
        texts([indexed(key.environment) for key in keys]),
        texts([key.plan_id for key in keys]),
        texts([indexed(key.owner_id) for key in keys]),
        texts([storable(key.name) for key in keys]),
        texts([sortable(key.name) for key in keys]),
        texts([searchable(key.name, key.id, *_hints(key), key.owner_id) for key in keys]),
        texts([_joined(key.tags) for key in keys]),
        texts([None if key.scopes.projects == "*" else _joined(key.scopes.projects) for key in keys]),
        bigints([key.created_at for key in keys]),
        bigints([NEVER if key.expires_at is None else key.expires_at for key in keys]),
        bigints([key.revoked_at for key in keys]),
        integers([key.version for key in keys]),
        bigints([key.position for key in keys]),
        byte_strings([_encode(key) for key in keys]),
    )
    session.write(
        _SAVE_UNUSED,
        texts([key.id for key in keys]),
        texts([key.organization_id for key in keys]),
        integers([_visibility(key) for key in keys]),
    )


def _visibility(key: Key) -> int:
    if key.deleted:
        return DELETED
    return LIVE if key.revoked_at is None else REVOKED


def _hints(key: Key) -> tuple[str, ...]:
    return tuple(secret.hint for secret in key.secrets)


def _joined(items: tuple[str, ...] | str) -> str:
    assert not isinstance(items, str), "a list, not everything"
    return _SEPARATOR.join(_element(item) for item in items)


def _element(text: str) -> str:
    return storable(text[:200]).replace(_SEPARATOR, " ")


# -- queries --------------------------------------------------------------------------------------

SORTS: Final[dict[str, tuple[str, type[int | str]]]] = {
    "created_at": ("created_at", int),
    "name": ("sort_name", str),
    "last_used_at": ("last_used_at", int),
    "expires_at": ("expires_at", int),
}
_BY_USE: Final = """key_uses JOIN (
    SELECT id, keyspace_id, disabled, environment, owner_id, search, tags, projects, expires_at
    FROM {schema}.keys) AS k USING (id)"""
"""Organization and visibility are those of `key_uses`, whose indexes begin with them."""
STATUSES: Final[dict[Status, str]] = {
    "active": "NOT disabled AND expires_at > %s",
    "disabled": "disabled AND expires_at > %s",
    "expired": "expires_at <= %s",
    "revoked": "",
}


async def list_keys(
    queries: Queries,
    *,
    now: Instant,
    organization_id: str | None = None,
    keyspace_id: str | None = None,
    project_id: str | None = None,
    owner_id: str | None = None,
    environment: str | None = None,
    tag: str | None = None,
    status: Status | None = None,
    q: str | None = None,
    include_revoked: bool = False,
    include_deleted: bool = False,
    sort: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    """The ids of the keys that pass all filters, newest first if no sort is given.

    ValueError names a bad sort, status or cursor. A project's keys are those that list it in their
    scopes. `q` is searched for in name, id, hints and owner, ignoring case: an id, or a page of frequent
    matches, is found quickly; for a rare match all keys that pass the other filters are read.
    """
    filters = Filters()
    filters.equal(organization_id=organization_id)
    of_both_tables = len(filters.conditions)
    filters.equal(keyspace_id=keyspace_id, owner_id=owner_id, environment=environment)
    if tag is not None:
        filters.only("tags <> '{}' AND tags @> ARRAY[%s]", _element(tag))
    if project_id is not None:
        filters.only("projects IS NOT NULL AND projects @> ARRAY[%s]", _element(project_id))
    if q is not None:
        filters.only("search LIKE %s", containing(q))
    if status is not None:
        _only_with_status(filters, status, now)
    order = sort_of(sort, SORTS, "-created_at")
    return await page(
        queries,
        _table(order, of_key_uses=len(filters.conditions) == of_both_tables),
        filters,
        branches=("visibility", _visibilities(status, revoked=include_revoked, deleted=include_deleted)),
        sort=order,
        limit=limit,
        cursor=cursor,
    )


def _table(order: Sort, *, of_key_uses: bool) -> str:
    if order.column != "last_used_at":
        return "keys"
    return "key_uses" if of_key_uses else _BY_USE


def _only_with_status(filters: Filters, status: Status, now: Instant) -> None:
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}")
    if STATUSES[status]:
        filters.only(STATUSES[status], now)


def _visibilities(status: Status | None, *, revoked: bool, deleted: bool) -> list[int]:
    found = [] if status == "revoked" else [LIVE]
    if status == "revoked" or (status is None and revoked):
        found.append(REVOKED)
    if deleted and status in {None, "revoked"}:
        found.append(DELETED)
    return found
