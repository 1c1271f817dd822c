"""Personal fields are encrypted in saved rows and kept answers, and lost with their organization's key."""

from typing import Any, get_args

import msgspec
import pytest

from domain import commands as c
from domain.errors import IdempotencyConflictError
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.organizations import Plan
from domain.personal import _WITHOUT, PLATFORM, SUBJECTS
from domain.ports import StateRow, TakenClaim
from domain.state import Books
from infra.postgres.data_keys import MasterKeyError
from infra.postgres.mapper import EventMapper
from keyledger_language import RateLimit
from keyledger_language.events import LedgerEvent, Private
from services.ledger import row_format
from services.ledger.jobs import Done, Idempotency
from tests.ledger.world import Process, World, deep_state

PERSONAL: dict[str, Any] = {
    "name": "Ada Lovelace", "owner_id": "countess", "metadata": {"note": "poetical"}, "tags": ("science",),
    "allowed_ips": ("192.0.2.0/24",),
}  # fmt: skip
WRITTEN = ("Lovelace", "countess", "poetical", "science", "192.0.2")
THE_PLATFORMS_OWN = {(Plan, "name"), (Keyspace, "name"), (RateLimit, "name")}
"""These are in plain text in their events, too."""


def render(result: Any, _books: Books, _position: int) -> bytes:
    """What the API would keep: all that it shows."""
    return msgspec.json.encode(result)


def named(key: str) -> Idempotency:
    return Idempotency(claim=key.encode().ljust(16, b"."), body_digest=b"a body of sixteen"[:16])


async def ada(ledger: Process, **more: Any) -> Key:
    """A key with all personal fields that a key can have."""
    key = await ledger.key()
    change = c.ChangeKey(key_id=key.id, **PERSONAL)
    result: Key = (await ledger.execute(change, **more)).result
    return result


def saved(world: World) -> bytes:
    return b"".join(row.data for row in world.rows._rows.values())


def kept(world: World) -> bytes:
    return b"".join(taken.answer or b"" for taken, _ in world.storage.claims.values())


def forget(world: World, subject: str) -> None:
    """Forget a subject, as the documents describe it."""
    world.storage.data_keys[subject] = b""


async def loaded(world: World) -> Process:
    """What a new process reads from the saved rows."""
    process = world.process()
    await process.ledger._ownership.follow()
    return process


# -- which they are


def shapes_in(shape: Any) -> set[type[msgspec.Struct]]:
    """Every struct that is in a saved row."""
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
        return {shape}.union(*(shapes_in(field.type) for field in msgspec.structs.fields(shape)))
    return set().union(*map(shapes_in, get_args(shape)))


def test_every_personal_field_of_a_saved_row_is_taken_out_of_it() -> None:
    """A row's field with the name of a personal field is one, or is listed as the platform's own."""
    shapes = shapes_in(tuple[tuple({**row_format.LATER, **row_format.AT_ONCE}.values())])  # type: ignore[misc]
    named_so = {
        (shape, name)
        for shape in shapes
        for name in shape.__struct_fields__
        if name in Private.__struct_fields__
    }

    taken_out = {(subject, name) for subject in SUBJECTS for name in _WITHOUT[subject]}

    assert shapes >= {*SUBJECTS, Plan, Keyspace}
    assert named_so == taken_out | THE_PLATFORMS_OWN


# -- saved rows


async def test_a_saved_row_shows_no_personal_field(world: World, ledger: Process) -> None:
    await ada(ledger)
    organization = await ledger.organization(external_id="countess", metadata={"note": "poetical"})
    await ledger.execute(c.OpenProject(organization_id=organization.id, name="Lovelace"))
    await ledger.ledger._saved.save()

    assert [word for word in WRITTEN if word.encode() in saved(world)] == []
    assert deep_state((await loaded(world)).ledger) == deep_state(ledger.ledger)


async def test_a_start_opens_no_box_that_nobody_asked_for(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ada(ledger)
    await ledger.ledger.bootstrap()
    await ledger.ledger._saved.save()
    opened: list[str] = []
    process = world.process()
    decrypt = process.mapper.data_keys.decrypt

    def watched(subject: str, ciphertext: bytes, context: str) -> bytes | None:
        opened.append(context)
        return decrypt(subject, ciphertext, context)

    monkeypatch.setattr(process.mapper.data_keys, "decrypt", watched)
    await process.ledger._ownership.follow()
    at_start, opened[:] = list(opened), []
    found = process.ledger.books.keys[key.id]

    [root] = [one for one in ledger.ledger.books.keys.values() if one.keyspace_id != key.keyspace_id]
    assert at_start == [f"keys/{root.id}"]
    assert opened == [f"keys/{key.id}"]
    assert found == key


async def test_a_box_opens_in_its_own_row_only(world: World, ledger: Process) -> None:
    ours, others = await ada(ledger), await ada(ledger)
    await ledger.ledger._saved.save()
    rows = world.rows._rows
    moved = rows[f"keys/{others.id}"].data.replace(others.id.encode(), ours.id.encode())
    moved = moved.replace((others.organization_id or "").encode(), (ours.organization_id or "").encode())
    rows[f"keys/{ours.id}"] = StateRow(f"keys/{ours.id}", moved)

    process = await loaded(world)

    with pytest.raises(MasterKeyError, match=ours.id):
        process.ledger.books.keys.get(ours.id)


async def test_what_was_saved_of_a_forgotten_organization_is_what_the_log_still_tells(
    world: World, ledger: Process
) -> None:
    key, other = await ada(ledger), await ada(ledger)
    await ledger.stopped()
    forget(world, key.organization_id or "")

    process = await loaded(world)
    replayed = world.process()
    await replayed.ledger._saved.follower.learn_data_keys(list(world.storage.events))
    await replayed.ledger._saved.follower.catch_up()

    found = process.ledger.books.keys[key.id]
    assert (found.name, found.owner_id, found.metadata, found.tags, found.allowed_ips) == (
        "",
        None,
        {},
        (),
        (),
    )
    assert found.secrets == key.secrets
    assert process.ledger.books.keys[other.id] == other
    assert deep_state(process.ledger) == deep_state(replayed.ledger)


async def test_a_forgotten_organization_stays_forgotten(world: World, ledger: Process) -> None:
    """A new data key for it would make what the old one encrypted look broken, and no start would succeed."""
    key = await ada(ledger)
    await ledger.stopped()
    forget(world, key.organization_id or "")
    again = await world.process().started()

    await again.execute(
        c.ChangeKey(key_id=key.id, name="Ada once more"), idempotency=named("k1"), render=render
    )
    await again.stopped()

    assert world.storage.data_keys[key.organization_id or ""] == b""
    assert b"once more" not in saved(world) + kept(world)
    assert all(b"once more" not in one.data for one in world.storage.events)
    assert (await loaded(world)).ledger.books.keys[key.id].name == ""


async def test_no_row_is_saved_whose_data_key_is_not_known(world: World, ledger: Process) -> None:
    """It would come back without its personal fields, and so without its list of addresses."""
    key = await ada(ledger)
    ledger.mapper.data_keys.forget([key.organization_id or ""])

    with pytest.raises(LookupError, match=key.organization_id):
        await ledger.ledger._saved.save()

    assert (await world.rows.through()).position == 0
    ledger.mapper.data_keys.learn(world.storage.data_keys)


async def test_rows_whose_root_keys_do_not_fit_the_data_keys_are_not_believed(
    world: World, ledger: Process
) -> None:
    """Of another history, or changed from outside: the log has what is true, and they are written again."""
    key = await ada(ledger)
    await ledger.ledger.bootstrap()
    await ledger.stopped()
    [root] = [one for one in ledger.ledger.books.keys.values() if one.keyspace_id != key.keyspace_id]
    row = world.rows._rows[f"keys/{root.id}"]
    whole, *_ = row_format.decode_one("keys", row.data)
    changed = whole[:-1] + bytes([whole[-1] ^ 1])  # the box is at its end
    world.rows._rows[row.subject] = StateRow(row.subject, row.data.replace(whole, changed))

    again = await world.process().started()
    await again.ledger._saved.save()

    assert deep_state(again.ledger) == deep_state(ledger.ledger)
    assert deep_state((await loaded(world)).ledger) == deep_state(again.ledger)


# -- kept answers


async def test_a_kept_answer_shows_nothing_and_is_read_by_the_next_owner(
    world: World, ledger: Process
) -> None:
    change: dict[str, Any] = {"idempotency": named("k1"), "render": render}
    key = await ada(ledger, **change)
    first = [word for word in WRITTEN if word.encode() in msgspec.json.encode(key)]
    await ledger.killed()
    again = await world.process().started()

    done: Done = await again.execute(c.ChangeKey(key_id=key.id, **PERSONAL), **change)

    assert first == [*WRITTEN], "it is all in the answer"
    assert [word for word in WRITTEN if word.encode() in kept(world)] == []
    assert done.replay == msgspec.json.encode(key)


@pytest.mark.parametrize("name", ["Countess", PERSONAL["name"]], ids=["a change", "nothing to do"])
async def test_an_answer_goes_with_the_organization_that_it_is_about(
    world: World, ledger: Process, name: str
) -> None:
    key = await ada(ledger)
    command = c.ChangeKey(key_id=key.id, name=name)
    await ledger.execute(command, idempotency=named("k1"), render=render)
    await ledger.stopped()
    forget(world, key.organization_id or "")
    again = await world.process().started()

    with pytest.raises(IdempotencyConflictError, match="cannot be read any more"):
        await again.execute(command, idempotency=named("k1"), render=render)


async def test_an_answer_about_several_organizations_is_kept_with_the_platforms_key(
    world: World, ledger: Process
) -> None:
    keys = [await ada(ledger) for _ in range(2)]
    command = c.RevokeKeys(key_ids=tuple(key.id for key in keys))
    first = await ledger.execute(command, idempotency=named("k1"), render=render)
    forget(world, keys[0].organization_id or "")
    await ledger.stopped()
    again = await world.process().started()

    done = await again.execute(command, idempotency=named("k1"), render=render)

    assert PLATFORM in world.storage.data_keys
    assert b"Lovelace" not in kept(world)
    assert done.replay == msgspec.json.encode(first.result)


async def test_an_answer_opens_under_its_own_key_only(world: World, ledger: Process) -> None:
    command = c.OpenOrganization(name="Lovelace")
    for name in ("k1", "k2"):
        await ledger.execute(command, idempotency=named(name), render=render)
    claims = world.storage.claims
    one, other = named("k1").claim, named("k2").claim
    claims[one] = TakenClaim(claims[one][0].position, claims[other][0].answer), claims[one][1]
    await ledger.stopped()
    again = await world.process().started()

    with pytest.raises(IdempotencyConflictError, match="cannot be read any more"):
        await again.execute(command, idempotency=named("k1"), render=render)


async def test_an_answer_that_was_kept_before_they_were_encrypted_is_read(
    world: World, ledger: Process
) -> None:
    command = c.OpenOrganization(name="Lovelace")
    await ledger.execute(command, idempotency=named("k1"), render=render)
    taken, expires_at = world.storage.claims[named("k1").claim]
    plain = named("k1").body_digest + bytes(8) + b'{"status":201}'
    world.storage.claims[named("k1").claim] = taken._replace(answer=plain), expires_at

    done = await ledger.execute(command, idempotency=named("k1"), render=render)

    assert done.replay == b'{"status":201}'


def test_a_forgotten_subject_gets_no_key_and_its_events_no_personal_fields() -> None:
    mapper: EventMapper[Any] = EventMapper(get_args(LedgerEvent))
    mapper.data_keys.learn({"org_1": b""})
    opened = msgspec.convert(
        {"type": "organization.opened", "at": 1, "organization_id": "org_1", "private": {"name": "Ada"}},
        LedgerEvent,
    )

    data = mapper.encode(opened, "org_1")

    assert b"Ada" not in data
    assert mapper.take_new_data_keys() == ()
    assert mapper.data_keys.knows("org_1")
