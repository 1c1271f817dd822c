"""Lists, search and audit, beside the same questions asked of the state in memory.

On a real PostgreSQL, and on what stands for it in the tests of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from domain.keys import Key
from domain.projecting import FoundEvent, Row
from domain.state import State
from keyledger_language.events import KeyRotated
from keyledger_language.instants import DAY
from projections.audit import AuditEntry, key_history, list_audit
from projections.directory import list_keyspaces, list_organizations, list_plans, list_projects
from projections.lookup import list_keys
from projections.pages import Page
from tests.contract.projected_worlds import Reading
from tests.histories import ROOT, History
from tests.memory_lists import MemoryLists


class Fake:
    """Asks what stands for PostgreSQL in the tests of the API."""

    def __init__(self, history: History) -> None:
        self.lists = MemoryLists()
        events = [FoundEvent(position, 0, event) for position, event in enumerate(history.events, start=1)]
        for start in range(0, len(events), 7):
            self.lists.follow(events[start : start + 7])

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        assert self.lists.has(statement)
        return self.lists.ask(statement, parameters)


@pytest.fixture(scope="module")
def fake(history: History) -> Fake:
    return Fake(history)


@pytest.fixture(params=["PostgreSQL", "memory"])
def asked(asked: Reading, fake: Fake, request: pytest.FixtureRequest) -> Reading:
    if request.param == "memory":
        asked.queries = fake
    return asked


async def all_pages(list_page: Callable[[str | None], Awaitable[Page]]) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await list_page(cursor)
        found += page.ids
        cursor = page.next_cursor
        if cursor is None:
            return found


def keys_of(state: State, fits: Callable[[Key], bool]) -> set[str]:
    return {key.id for key in state.keys.values() if fits(key)}


def test_the_history_has_what_the_filters_are_about(history: History) -> None:
    keys = history.state.keys.values()

    assert len(history.state.keys) > 20
    assert any(key.revoked_at is not None and not key.deleted for key in keys)
    assert any(key.deleted for key in keys)
    assert any(key.disabled for key in keys)


IN_EITHER_TABLE = pytest.mark.parametrize("sort", ["created_at", "last_used_at"])
"""Lists in the order of use are read from another table."""


@IN_EITHER_TABLE
async def test_revoked_and_deleted_keys_are_hidden_unless_asked_for(
    history: History, asked: Reading, sort: str
) -> None:
    now, state = history.at, history.state
    live = await list_keys(asked.queries, now=now, limit=500, sort=sort)
    revoked_too = await list_keys(asked.queries, now=now, limit=500, sort=sort, include_revoked=True)
    all_of_them = await list_keys(
        asked.queries, now=now, limit=500, sort=sort, include_revoked=True, include_deleted=True
    )

    assert keys_of(state, lambda key: key.revoked_at is None) == set(live.ids)
    assert keys_of(state, lambda key: not key.deleted) == set(revoked_too.ids)
    assert set(state.keys) == set(all_of_them.ids)


@IN_EITHER_TABLE
async def test_each_filter_finds_what_the_state_says(history: History, asked: Reading, sort: str) -> None:
    now, state = history.at, history.state
    organization_id = history.organizations[0]

    async def found(**filters: str) -> set[str]:
        page = await list_keys(asked.queries, now=now, limit=500, sort=sort, include_revoked=True, **filters)  # type: ignore[arg-type]  # texts
        return set(page.ids)

    def expected(fits: Callable[[Key], bool]) -> set[str]:
        return keys_of(state, lambda key: fits(key) and not key.deleted)

    assert expected(lambda key: key.organization_id == organization_id) == await found(
        organization_id=organization_id
    )
    assert expected(lambda key: True) == await found(keyspace_id=history.keyspace_id)
    assert expected(lambda key: key.owner_id == "ann") == await found(owner_id="ann")
    assert expected(lambda key: key.environment == "staging") == await found(environment="staging")
    assert expected(lambda key: "blue" in key.tags) == await found(tag="blue")
    assert expected(lambda key: "prj_b" in key.scopes.projects) == await found(project_id="prj_b")
    for status in ("active", "disabled", "expired", "revoked"):
        assert expected(lambda key, s=status: key.status(now) == s) == await found(status=status), status  # type: ignore[misc]  # s


@pytest.mark.parametrize(
    "q, fits",
    [
        ("ZEB", lambda key: "zeb" in key.name.lower()),
        ("100%", lambda key: "100%" in key.name),
        ("_", lambda key: True),
        ("ann", lambda key: key.owner_id == "ann"),
        ("next", lambda key: key.generation > 1),
    ],
)
async def test_a_search_looks_at_names_ids_hints_and_owners_in_any_case(
    history: History, asked: Reading, q: str, fits: Callable[[Key], bool]
) -> None:
    page = await list_keys(asked.queries, now=history.at, limit=500, include_revoked=True, q=q)

    assert keys_of(history.state, lambda key: fits(key) and not key.deleted) == set(page.ids)


SORTED: dict[str, Callable[[History, Key], object]] = {
    "created_at": lambda _, key: (key.created_at, key.id),
    "name": lambda _, key: (key.name.casefold(), key.id),
    "expires_at": lambda _, key: (key.expires_at or 2**63, key.id),
    "last_used_at": lambda history, key: (
        history.state.last_used.get(key.id, 0) // 60_000_000,
        key.id,
    ),
}


@pytest.mark.parametrize("sort", [*SORTED, *(f"-{name}" for name in SORTED)])
async def test_pages_in_any_order_show_every_key_once(history: History, asked: Reading, sort: str) -> None:
    async def list_page(cursor: str | None) -> Page:
        return await list_keys(
            asked.queries, now=history.at, include_revoked=True, sort=sort, limit=3, cursor=cursor
        )

    keys = [key for key in history.state.keys.values() if not key.deleted]
    order = SORTED[sort.removeprefix("-")]
    keys.sort(key=lambda key: order(history, key), reverse=sort.startswith("-"))  # type: ignore[arg-type, return-value]  # tuples

    assert [key.id for key in keys] == await all_pages(list_page)


@pytest.mark.parametrize("cursor", ["", "x", "W10", "é", "WyJuYW1lIiwxLCJ4Il0", "\0"])
async def test_a_cursor_that_is_none_is_a_value_error(history: History, asked: Reading, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await list_keys(asked.queries, now=history.at, cursor=cursor)
    with pytest.raises(ValueError, match="cursor"):
        await list_audit(asked.queries, asked.events, cursor=cursor)


async def test_a_cursor_of_one_order_does_not_fit_another(history: History, asked: Reading) -> None:
    page = await list_keys(asked.queries, now=history.at, limit=1)

    with pytest.raises(ValueError, match="another list"):
        await list_keys(asked.queries, now=history.at, limit=1, sort="name", cursor=page.next_cursor)


async def test_an_unknown_sort_or_status_is_a_value_error(history: History, asked: Reading) -> None:
    with pytest.raises(ValueError, match="sort must be one of"):
        await list_keys(asked.queries, now=history.at, sort="secret")
    with pytest.raises(ValueError, match="status must be one of"):
        await list_keys(asked.queries, now=history.at, status="lost")  # type: ignore[arg-type]  # a caller's mistake


async def test_filters_survive_any_text(history: History, asked: Reading) -> None:
    for text in ("\0", "a" * 100_000, "'; DROP TABLE keys; --", "\ud800", "%s", "{schema}"):
        page = await list_keys(
            asked.queries,
            now=history.at,
            q=text,
            owner_id=text,
            tag=text,
            project_id=text,
            organization_id=text,
        )
        assert page.ids == []


async def test_organizations_projects_plans_and_keyspaces_are_listed(
    history: History, asked: Reading
) -> None:
    state, queries = history.state, asked.queries
    organization_id = next(project.organization_id for project in state.projects.values())

    assert set(state.organizations) == set((await list_organizations(queries, limit=500)).ids)
    assert list(state.plans) == (await list_plans(queries)).ids
    assert list(state.keyspaces) == (await list_keyspaces(queries)).ids
    assert {one.id for one in state.projects.values() if one.organization_id == organization_id} == set(
        (await list_projects(queries, organization_id=organization_id, limit=500)).ids
    )
    assert [history.organizations[0]] == (await list_organizations(queries, external_id="ext-0")).ids


async def test_the_audit_log_tells_who_did_what_from_where_with_before_and_after(
    history: History, asked: Reading
) -> None:
    page = await list_audit(asked.queries, asked.events, action="KeyCreated", limit=1, newest_first=False)
    created: AuditEntry = page.entries[0]
    key = history.state.keys[str(created.key_id)]
    key_renamed = await list_audit(asked.queries, asked.events, action="KeyRenamed", limit=1)

    assert (created.actor, created.ip, created.user_agent, created.request_id) == (
        ROOT,
        "192.0.2.7",
        "curl",
        "trace-0",
    )
    assert created.subject == key.id
    assert created.before is None
    assert created.after is not None
    assert created.after["metadata"] == {"n": 0}
    assert "fingerprint" not in created.after
    assert key_renamed.entries[0].before is not None
    assert key_renamed.entries[0].before.keys() == {"name"}
    assert key_renamed.entries[0].after is not None
    assert key_renamed.entries[0].after.keys() == {"name"}


async def test_audit_filters_and_pages_agree_with_the_log(history: History, asked: Reading) -> None:
    async def positions(**filters: object) -> list[int]:
        found: list[int] = []
        cursor = None
        while True:
            page = await list_audit(asked.queries, asked.events, limit=7, cursor=cursor, **filters)  # type: ignore[arg-type]  # filters
            found += [entry.position for entry in page.entries]
            cursor = page.next_cursor
            if cursor is None:
                return found

    all_of_them = await list_audit(asked.queries, asked.events, limit=5_000, newest_first=False)
    entries = all_of_them.entries
    middle, end = entries[len(entries) // 3].at, entries[len(entries) // 2].at
    key_id = next(entry.key_id for entry in reversed(entries) if entry.key_id)
    organization_id = history.organizations[0]

    def expected(fits: Callable[[AuditEntry], bool]) -> list[int]:
        return [entry.position for entry in reversed(entries) if fits(entry)]

    assert expected(lambda _: True) == await positions()
    assert expected(lambda entry: entry.key_id == key_id) == await positions(key_id=key_id)
    assert expected(lambda entry: entry.organization_id == organization_id) == await positions(
        organization_id=organization_id
    )
    assert expected(lambda entry: entry.actor == "system") == await positions(actor="system")
    assert expected(lambda entry: entry.request_id == "trace-3") == await positions(request_id="trace-3")
    assert expected(lambda entry: middle <= entry.at < end) == await positions(from_at=middle, to_at=end)
    assert await positions(from_at=history.at + DAY) == []
    assert await positions(to_at=entries[0].at) == []


async def test_a_keys_history_is_its_own_stream_in_order(history: History, asked: Reading) -> None:
    rotated = next(event for event in history.events if isinstance(event, KeyRotated))
    expected = [
        position
        for position, event in enumerate(history.events, start=1)
        if getattr(event, "key_id", None) == rotated.key_id and type(event).__name__.startswith(KEY_VERBS)
    ]
    first = await key_history(asked.events, rotated.key_id, limit=2)
    rest = await key_history(asked.events, rotated.key_id, limit=500, cursor=first.next_cursor)
    backwards = await key_history(asked.events, rotated.key_id, limit=500, newest_first=True)

    assert expected == [entry.position for entry in (*first.entries, *rest.entries)]
    assert expected == [entry.position for entry in reversed(backwards.entries)]


KEY_VERBS = ("Key", "TagsSet", "EnvironmentSet", "ScopesEdited", "ExpirySet")
