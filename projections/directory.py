"""Organizations, projects, plans and keyspaces as they are listed and searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from domain.evolve import evolve
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan, Project
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
from projections.pages import (
    Filters,
    Page,
    containing,
    indexed,
    page,
    searchable,
    sort_of,
    sortable,
    storable,
)

_SUBJECT_TABLE: Final = """
CREATE TABLE {schema}.{table} (
    id text COLLATE "C" PRIMARY KEY,
    organization_id text COLLATE "C",
    hidden boolean NOT NULL, -- an archived project
    external_id text COLLATE "C",
    name text COLLATE "C" NOT NULL,
    sort_name text COLLATE "C" NOT NULL,
    search text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    version integer NOT NULL,
    position bigint NOT NULL,
    document bytea NOT NULL -- the whole subject, as msgpack
);
CREATE INDEX ON {schema}.{table} (hidden, created_at, id);
CREATE INDEX ON {schema}.{table} (hidden, sort_name, id);
CREATE INDEX ON {schema}.{table} (organization_id, hidden, created_at, id) WHERE organization_id IS NOT NULL;
CREATE INDEX ON {schema}.{table} (organization_id, hidden, sort_name, id) WHERE organization_id IS NOT NULL;
CREATE INDEX ON {schema}.{table} (external_id) WHERE external_id IS NOT NULL;
"""
_SAVE: Final = """
INSERT INTO {schema}.{table} AS t (id, organization_id, hidden, external_id, name, sort_name, search,
    created_at, version, position, document)
SELECT * FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET organization_id = excluded.organization_id, hidden = excluded.hidden,
    external_id = excluded.external_id, name = excluded.name, sort_name = excluded.sort_name,
    search = excluded.search, created_at = excluded.created_at, version = excluded.version,
    position = excluded.position, document = excluded.document
"""


class _Kind(NamedTuple):
    """One kind of subject: where its rows are, and which events change them."""

    table: str
    """Of the projection, and of the domain's state."""
    subject_type: type[Any]
    events: tuple[type[e.Event], ...]
    subject_of: Callable[[Any], str]


_KINDS: Final = (
    _Kind(
        "organizations",
        Organization,
        (
            e.OrganizationOpened,
            e.OrganizationChanged,
            e.OrganizationQuotasSet,
            e.OrganizationSuspended,
            e.OrganizationResumed,
        ),
        lambda event: event.organization_id,
    ),
    _Kind(
        "projects",
        Project,
        (e.ProjectOpened, e.ProjectRenamed, e.ProjectQuotasSet, e.ProjectArchived),
        lambda event: event.project_id,
    ),
    _Kind("plans", Plan, (e.PlanDefined, e.PlanChanged), lambda event: event.plan_id),
    _Kind(
        "keyspaces",
        Keyspace,
        (e.KeyspaceDefined, e.KeyspaceChanged, e.KeyspaceArchived),
        lambda event: event.keyspace_id,
    ),
)


class Directory:
    """One row per organization, project, plan and keyspace."""

    name = "directory"
    version = 1
    definition = "".join(_SUBJECT_TABLE.replace("{table}", kind.table) for kind in _KINDS)
    tables = tuple(ProjectionTable(kind.table, ("id",)) for kind in _KINDS)

    def __init__(self) -> None:
        self._changes: dict[str, list[tuple[e.Event, int]]] = {}

    def handlers(self) -> Mapping[type[e.Event], Handler]:
        """All events that change a subject."""
        return {event_type: self._remember(kind.table) for kind in _KINDS for event_type in kind.events}

    def held(self) -> int:
        """The number of changes."""
        return sum(map(len, self._changes.values()))

    def take(self) -> Writing:
        """Load the rows that changed, fold the events into them, write them back."""
        changes, self._changes = self._changes, {}

        def write(session: SchemaTransaction) -> None:
            for kind in _KINDS:
                if changed := changes.get(kind.table):
                    _change_subjects(session, kind, changed)

        return write

    def forget(self) -> None:
        """Drop what is not written."""
        self._changes = {}

    def _remember(self, table: str) -> Handler:
        def handler(events: Sequence[e.Event], first: int) -> None:
            changes = self._changes.setdefault(table, [])
            changes += [(event, position) for position, event in enumerate(events, first)]

        return handler


def _change_subjects(session: SchemaTransaction, kind: _Kind, changes: list[tuple[e.Event, int]]) -> None:
    books = State()
    subjects: dict[str, Any] = getattr(books, kind.table)
    wanted = {kind.subject_of(event) for event, _ in changes}
    find = f"SELECT document FROM {{schema}}.{kind.table} WHERE id = ANY(%s)"
    for (document,) in session.rows(find, texts(list(wanted))):
        subject = msgspec.msgpack.decode(document, type=kind.subject_type)
        subjects[subject.id] = subject
    for event, position in changes:
        evolve(books, event, position)
    rows = list(subjects.values())
    session.write(
        _SAVE.replace("{table}", kind.table),
        texts([row.id for row in rows]),
        texts([getattr(row, "organization_id", None) for row in rows]),
        booleans([getattr(row, "archived", False) for row in rows]),
        texts([indexed(getattr(row, "external_id", None)) for row in rows]),
        texts([storable(row.name) for row in rows]),
        texts([sortable(row.name) for row in rows]),
        texts([searchable(row.name, row.id, getattr(row, "external_id", None)) for row in rows]),
        bigints([row.created_at for row in rows]),
        integers([row.version for row in rows]),
        bigints([row.position for row in rows]),
        byte_strings([msgspec.msgpack.encode(row) for row in rows]),
    )


# -- queries --------------------------------------------------------------------------------------

SORTS: Final[dict[str, tuple[str, type[int | str]]]] = {
    "created_at": ("created_at", int),
    "name": ("sort_name", str),
}


async def list_organizations(
    queries: Queries,
    *,
    organization_id: str | None = None,
    external_id: str | None = None,
    q: str | None = None,
    sort: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    """The ids of organizations, newest first if no sort is given."""
    filters = _filters(q)
    filters.equal(id=organization_id, external_id=external_id)
    return await _list(queries, "organizations", filters, sort=sort, limit=limit, cursor=cursor)


async def list_projects(
    queries: Queries,
    *,
    organization_id: str,
    include_archived: bool = True,
    q: str | None = None,
    sort: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    """The ids of one organization's projects."""
    filters = _filters(q)
    filters.equal(organization_id=organization_id)
    hidden = (False, True) if include_archived else (False,)
    return await _list(queries, "projects", filters, sort=sort, limit=limit, cursor=cursor, hidden=hidden)


async def list_plans(
    queries: Queries,
    *,
    q: str | None = None,
    sort: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    """The ids of plans."""
    return await _list(queries, "plans", _filters(q), sort=sort, limit=limit, cursor=cursor)


async def list_keyspaces(
    queries: Queries,
    *,
    keyspace_id: str | None = None,
    include_archived: bool = True,
    q: str | None = None,
    sort: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    """The ids of keyspaces, the built-in one included."""
    filters = _filters(q)
    filters.equal(id=keyspace_id)
    hidden = (False, True) if include_archived else (False,)
    return await _list(queries, "keyspaces", filters, sort=sort, limit=limit, cursor=cursor, hidden=hidden)


async def organization_ids(queries: Queries, *, limit: int) -> list[str]:
    """The ids of all organizations, up to a limit."""
    return [row[0] for row in await queries.rows("SELECT id FROM {schema}.organizations LIMIT %s", (limit,))]


def _filters(q: str | None) -> Filters:
    filters = Filters()
    if q is not None:
        filters.only("search LIKE %s", containing(q))
    return filters


async def _list(
    queries: Queries,
    table: str,
    filters: Filters,
    *,
    sort: str | None,
    limit: int,
    cursor: str | None,
    hidden: tuple[bool, ...] = (False,),
) -> Page:
    order = sort_of(sort, SORTS, "-created_at")
    branches = ("hidden", hidden)
    return await page(queries, table, filters, branches=branches, sort=order, limit=limit, cursor=cursor)
