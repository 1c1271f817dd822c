"""Loaded rows that were not looked up yet: each look-up finds them, and nothing shows that they waited."""

import os
from typing import Any

import msgspec
import pytest

from domain import commands as c
from domain.keyspaces import ROOT_KEYSPACE_ID
from domain.state import TABLES, State
from infra.postgres.data_keys import DataKeys
from services.ledger.lazy_tables import EncodedRows, LazyTable
from services.ledger.narrowings import Narrowings
from services.ledger.saving import StateKeeper
from tests.ledger.world import Process, World, charge, reserve


@pytest.fixture
async def live(ledger: Process) -> State:
    """A few organizations with a project, and a key that was charged, reserved with and rotated; saved."""
    for _ in range(3):
        key = await ledger.key(1_000)
        await ledger.together(*(charge(key, f"{key.id} {n}", n) for n in range(3)))
        await ledger.execute(reserve(key, f"{key.id} held", 10))
        rotate = c.RotateKey(key_id=key.id, fingerprint=os.urandom(32), hint="kl_...", overlap_seconds=60)
        await ledger.execute(rotate)
        await ledger.execute(c.OpenProject(organization_id=key.organization_id or "", name="a project"))
    await ledger.ledger.bootstrap()
    await ledger.ledger._saved.save()
    return ledger.ledger._memory.state


@pytest.fixture
async def loaded(world: World, live: State) -> State:
    """The same state, loaded: only the root key was looked up."""
    assert live.head == (await world.rows.through()).position
    state = State()
    await keeper_of(world, state).load(nothing_more)
    return state


def keeper_of(world: World, state: State) -> StateKeeper:
    """A keeper that has learned the data keys already."""
    data_keys = DataKeys()
    data_keys.learn(world.storage.data_keys)
    return StateKeeper(world.rows, state, Narrowings(), data_keys)


async def nothing_more() -> None:
    """There is nothing left to be learned."""


def decoded(table: dict[Any, Any]) -> int:
    """How many of a table's rows are decoded."""
    return dict.__len__(table)


async def test_the_number_of_keys_and_organizations_is_known_before_they_are_decoded(
    live: State, loaded: State
) -> None:
    assert len(loaded.keys) == len(live.keys) == 4
    assert len(loaded.organizations) == len(live.organizations) == 3

    assert decoded(loaded.keys) == 1
    assert decoded(loaded.organizations) == 0


async def test_the_root_key_is_decoded_at_the_start_and_comes_first(live: State, loaded: State) -> None:
    first = next(iter(loaded.keys.values()))

    assert first.keyspace_id == ROOT_KEYSPACE_ID
    assert first == live.keys[first.id]
    assert decoded(loaded.keys) == 1


@pytest.mark.parametrize("name", TABLES)
async def test_each_row_is_found_by_its_id_as_it_was(live: State, loaded: State, name: str) -> None:
    was, now = getattr(live, name), getattr(loaded, name)

    for key, row in was.items():
        assert now.find(key) == now.get(key) == now[key] == row
        assert key in now


@pytest.mark.parametrize("name", TABLES)
async def test_each_row_is_met_once_in_an_iteration_though_others_are_looked_up_meanwhile(
    live: State, loaded: State, name: str
) -> None:
    was, now = getattr(live, name), getattr(loaded, name)

    met: list[tuple[object, object]] = []
    for key, row in now.items():
        met.append((key, row))
        assert [now.get(other) for other in was] == list(was.values())

    assert len(met) == len(was) == len(now)
    assert dict(met) == was
    assert set(now) == set(now.keys()) == set(was)
    assert len(list(now.values())) == len(was)


@pytest.mark.parametrize("name", TABLES)
async def test_a_table_is_equal_to_another_with_the_same_rows(live: State, loaded: State, name: str) -> None:
    was, now = getattr(live, name), getattr(loaded, name)

    assert now == was
    assert was == now
    assert not now != was  # noqa: SIM202  # that is what is tested
    assert now != {**was, "another": None}


@pytest.mark.parametrize("name", TABLES)
async def test_what_is_not_there_is_not_found(loaded: State, name: str) -> None:
    table = getattr(loaded, name)
    stranger: Any = os.urandom(32) if name == "secrets" else "key_00000000000000000000000000"

    assert table.get(stranger) is None
    assert table.get(stranger, 5) == 5
    assert table.find(stranger) is None
    assert stranger not in table
    with pytest.raises(KeyError):
        table[stranger]


async def test_a_key_is_found_by_each_of_its_secrets(live: State, loaded: State) -> None:
    for fingerprint, secret in live.secrets.items():
        assert loaded.secrets.get(fingerprint) == secret
        assert loaded.keys[secret.key_id] == live.keys[secret.key_id]


async def test_a_look_up_decodes_one_row_and_what_stands_in_it(live: State, loaded: State) -> None:
    key_id = next(iter(live.keys))

    assert loaded.versions.get(key_id) == live.versions[key_id]

    assert decoded(loaded.keys) == 2
    assert decoded(loaded.secrets) == 3
    assert decoded(loaded.counters) == 0


async def test_what_is_set_before_its_row_was_decoded_is_not_set_back(live: State, loaded: State) -> None:
    key_id = next(iter(live.keys))
    later = live.last_used[key_id] + 1

    loaded.last_used[key_id] = later
    assert loaded.counters[key_id] == live.counters[key_id]

    assert loaded.last_used[key_id] == later


async def test_a_row_that_is_removed_does_not_come_back(live: State, loaded: State) -> None:
    key_id = next(iter(live.keys))
    organization_id = next(iter(live.organizations))

    assert loaded.keys.pop(key_id) == live.keys[key_id]
    del loaded.organizations[organization_id]

    assert loaded.keys.pop(key_id, None) is None
    assert key_id not in loaded.keys
    assert organization_id not in loaded.organizations
    assert len(loaded.keys) == len(live.keys) - 1
    assert len(loaded.organizations) == len(live.organizations) - 1


async def test_a_default_is_set_only_where_no_row_waits(live: State, loaded: State) -> None:
    key_id = next(iter(live.keys))

    assert loaded.last_used.setdefault(key_id, 1) == live.last_used[key_id]
    assert loaded.last_used.setdefault("key_new", 1) == 1
    assert loaded.last_used["key_new"] == 1


async def test_a_state_that_is_loaded_again_is_not_touched_by_tables_of_before(
    world: World, live: State
) -> None:
    state = State()
    keeper = keeper_of(world, state)
    await keeper.load(nothing_more)
    before = state.keys
    state.forget()
    await keeper.load(nothing_more)

    assert [before.get(key_id) for key_id in live.keys if key_id not in dict.keys(before)] == [None] * 3
    assert decoded(state.keys) == 1
    assert state.keys == live.keys


def test_a_row_that_cannot_be_decoded_is_not_lost() -> None:
    rows = EncodedRows("keys", lambda _subject, _parts: None, DataKeys())
    table = LazyTable[str, object](rows.decode, (rows,), rows)
    rows.rows["key_1"] = b"not a key"

    for _ in range(2):
        with pytest.raises(msgspec.DecodeError):
            table.get("key_1")

    assert len(table) == 1
