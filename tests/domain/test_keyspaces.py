"""Keyspaces and plans: shapes of at least 128 bits, prefixes that do not overlap."""

from typing import Any

import msgspec
import pytest

from domain import commands as c
from domain.errors import (
    BuiltinError,
    InvalidError,
    KeyspaceArchivedError,
    KeyspaceInUseError,
    PrefixOverlapError,
    VersionConflictError,
)
from domain.keyspaces import PRESETS, ROOT_KEYSPACE_ID, why_unfit
from keyledger_language import AcceptedFormat, SecretFormat
from tests.domain.given import World, fingerprint_of


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_makes_secrets_that_it_recognises_and_that_hold_128_bits(preset: str) -> None:
    keyspace = World().keyspace(preset=preset, prefix=None)
    secret = keyspace.shape.generate()

    assert secret.startswith(keyspace.prefix)
    assert keyspace.shape.recognises(secret)
    assert not keyspace.shape.recognises(secret[:-1])
    assert keyspace.secret_format.bits >= 128


def test_a_changed_keyspace_has_the_shape_that_it_was_given() -> None:
    world = World()
    before = world.keyspace(prefix=None)
    old = before.shape
    accepted = AcceptedFormat(prefix="old_", alphabet="hex", min_length=40, max_length=40)
    after = msgspec.structs.replace(before, accepted_formats=(accepted,))

    assert before.shape is old
    assert not old.recognises("old_" + 40 * "a")
    assert after.shape.recognises("old_" + 40 * "a")


# existing, new: taken or free?
PREFIXES = """
    acme_    acme_      taken
    acme_    acme_live_ taken
    acme_live_  acme_   taken
    acme_    acm_       free
    acme_    kl_root_   taken
    acme_    kl_        taken
    acme     acme_x     taken
    acme_    ACME_      free
"""


@pytest.mark.parametrize("row", PREFIXES.strip().splitlines())
def test_no_secret_can_be_taken_for_one_of_another_keyspace(row: str) -> None:
    there, new, outcome = row.split()
    world = World()
    world.keyspace(prefix=there)

    if outcome == "free":
        assert world.keyspace(prefix=new).prefix == new
        return
    with pytest.raises(PrefixOverlapError):
        world.keyspace(prefix=new)


def test_two_of_one_prefix_in_a_group_make_one_keyspace() -> None:
    command = c.DefineKeyspace(name="a", prefix="acme_")
    _, second = World().together(command, command)

    assert isinstance(second, PrefixOverlapError)


def test_two_of_one_prefix_in_groups_behind_each_other_make_one_keyspace() -> None:
    world, command = World(), c.DefineKeyspace(name="a", prefix="acme_")
    first = world.decide(command)
    [second] = [outcome for _, outcome in world.decide(command, above=first).outcomes]

    assert isinstance(second, PrefixOverlapError)


# what happened to it: may it be archived?
ARCHIVED = """
    nothing                 yes
    a key                   keyspace_in_use
    an imported key         keyspace_in_use
    a revoked key           keyspace_in_use
    a deleted key           keyspace_in_use
    a root key bound to it  yes
"""


@pytest.mark.parametrize("row", ARCHIVED.strip().splitlines())
def test_a_keyspace_that_never_had_a_key_can_be_archived(row: str) -> None:
    what, outcome = (part.strip() for part in row.rsplit(maxsplit=1))
    world = World()
    keyspace = world.keyspace(prefix="acme_")
    if what == "a root key bound to it":
        world.root_key("verify", keyspace_id=keyspace.id)
    elif what != "nothing":
        key = world.key(keyspace.id, world.organization().id, imported=what == "an imported key")
        if what == "a revoked key":
            world.ask(c.RevokeKey(key_id=key.id))
        if what == "a deleted key":
            world.ask(c.DeleteKey(key_id=key.id))
    archive = c.ArchiveKeyspace(keyspace_id=keyspace.id, reason="a mistake")

    if outcome == "yes":
        archived = world.ask(archive)
        assert (archived.archived, archived.version) == (True, 2)
        return
    with pytest.raises(KeyspaceInUseError) as refused:
        world.ask(archive)
    assert refused.value.code == outcome
    assert not world.state.keyspaces[keyspace.id].archived


def test_a_key_and_an_archive_in_one_group_go_one_after_the_other() -> None:
    world = World()
    first, second = world.keyspace(), world.keyspace()
    organization = world.organization()
    new = [
        c.CreateKey(
            keyspace_id=one.id, organization_id=organization.id, name="x",
            fingerprint=fingerprint_of(one.id), hint="x",
        )
        for one in (first, second)
    ]  # fmt: skip
    archives = [c.ArchiveKeyspace(keyspace_id=one.id) for one in (first, second)]
    _, used, _, gone = world.together(new[0], archives[0], archives[1], new[1])

    assert isinstance(used, KeyspaceInUseError)
    assert isinstance(gone, KeyspaceArchivedError)


def test_archiving_twice_is_harmless() -> None:
    world = World()
    archive = c.ArchiveKeyspace(keyspace_id=world.keyspace().id)
    world.ask(archive)
    happened = len(world.placed)

    assert world.ask(archive).archived
    assert len(world.placed) == happened


def test_an_archived_keyspace_gives_its_prefix_back() -> None:
    world = World()
    old = world.keyspace(prefix="acme_")
    world.ask(c.ArchiveKeyspace(keyspace_id=old.id))
    new = world.keyspace(prefix="acme_live_")

    assert new.prefix == "acme_live_"
    with pytest.raises(PrefixOverlapError):
        world.keyspace(prefix="acme_")


def test_an_archived_keyspace_takes_no_keys_and_no_changes() -> None:
    world = World()
    keyspace = world.keyspace()
    world.ask(c.ArchiveKeyspace(keyspace_id=keyspace.id))

    with pytest.raises(KeyspaceArchivedError):
        world.ask(c.ChangeKeyspace(keyspace_id=keyspace.id, name="b"))
    with pytest.raises(KeyspaceArchivedError):
        world.key(keyspace.id, world.organization().id)
    with pytest.raises(KeyspaceArchivedError):
        world.root_key("verify", keyspace_id=keyspace.id)


def test_a_keyspace_is_archived_on_the_version_that_was_read() -> None:
    world = World()
    keyspace = world.keyspace()
    world.ask(c.ChangeKeyspace(keyspace_id=keyspace.id, name="b"))

    with pytest.raises(VersionConflictError):
        world.ask(c.ArchiveKeyspace(keyspace_id=keyspace.id, expected_version=1))
    assert world.ask(c.ArchiveKeyspace(keyspace_id=keyspace.id, expected_version=2)).archived


def test_the_keyspace_of_root_keys_cannot_be_archived() -> None:
    with pytest.raises(BuiltinError):
        World().ask(c.ArchiveKeyspace(keyspace_id=ROOT_KEYSPACE_ID))


# the keyspace's own (base62 behind acme_), accepted; the hint: may it be one of its secrets?
HINTS = """
    -           acme_...x7Qd          yes
    -           acme_a1...x7Qd        yes
    -           acme_****x7Qd         yes
    -           acme_                 yes
    -           -                   no
    -           x7Qd                no
    -           ...x7Qd             no
    -           sk-...x7Qd          no
    -           k...x7Qd            no
    -           acme_...x7-d          no
    old_:hex    -                   yes
    old_:hex    old_...09af         yes
    old_:hex    ol...09af           yes
    old_:hex    old_...x7Qd         no
    old_:hex    old_x...09af        no
    old_:hex    older_...09af       no
    old_:hex    x7Qd                yes
    old_:hex    acme_...x7Qd          yes
    old_:hex    sk-...09af          no
    old_:hex    Bob's_old_one       yes
    :base62     x7Qd                yes
    :base62     ...x7-d             no
"""


@pytest.mark.parametrize("row", HINTS.strip().splitlines())
def test_a_hint_says_whether_an_imported_secret_can_be_one_of_the_keyspace(row: str) -> None:
    formats, hint, outcome = row.split()
    prefix, _, alphabet = formats.partition(":")
    accepted = () if formats == "-" else (AcceptedFormat(prefix=prefix, alphabet=alphabet, min_length=32),)  # type: ignore[arg-type]  # a table's column
    keyspace = World().keyspace(prefix="acme_", accepted_formats=accepted)
    why = why_unfit(keyspace, None if hint == "-" else hint)

    assert (why is None) is (outcome == "yes"), why


def test_a_hint_of_hex_alone_has_no_other_letters() -> None:
    keyspace = World().keyspace(preset="leanmcp", prefix=None)

    assert why_unfit(keyspace, "leanmcp_...09af") is None
    assert why_unfit(keyspace, "leanmcp_...09aF") is not None


UNFIT: dict[str, dict[str, Any]] = {
    "preset": {"preset": "unheard-of"},
    "prefix": {"prefix": "_acme"},
    "secret_format.length": {"secret_format": SecretFormat(alphabet="base62", length=21)},
    "accepted_formats[0].min_length": {"accepted_formats": (AcceptedFormat(min_length=21),)},
    "accepted_formats[0].max_length": {"accepted_formats": (AcceptedFormat(min_length=30, max_length=29),)},
    "credential_locations": {"credential_locations": ("cookie:key",)},
    "tenant_locations": {"tenant_locations": {"team": "query:team"}},
    "tenant_locations.org_id": {"tenant_locations": {"org_id": "body:org"}},
    "denial_status.valid": {"denial_status": {"valid": 403}},
    "denial_status.unheard": {"denial_status": {"unheard": 403}},
    "denial_status.rate_limited": {"denial_status": {"rate_limited": 200}},
    "required_dimensions": {"required_dimensions": ("colour",)},
}


@pytest.mark.parametrize("field", UNFIT)
def test_a_field_that_cannot_be_taken_is_named(field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        World().keyspace(**UNFIT[field])
    assert refused.value.field == field


@pytest.mark.parametrize(
    "alphabet, length, accepted", [("base62", 22, True), ("hex", 31, False), ("hex", 32, True)]
)
def test_128_bits_are_enough_and_less_is_not(alphabet: Any, length: int, accepted: bool) -> None:  # noqa: FBT001
    secret_format = SecretFormat(alphabet=alphabet, length=length)
    if accepted:
        assert World().keyspace(secret_format=secret_format).secret_format == secret_format
        return
    with pytest.raises(InvalidError):
        World().keyspace(secret_format=secret_format)


def test_a_change_is_checked_as_a_whole_and_what_is_left_out_stays() -> None:
    world = World()
    keyspace = world.keyspace(preset="leadmagic", prefix=None)
    changed = world.ask(c.ChangeKeyspace(keyspace_id=keyspace.id, denial_status={"billing_shortfall": 402}))

    assert changed.denial_status == {"billing_shortfall": 402}
    assert (changed.prefix, changed.require_balance, changed.version) == ("lm_", True, 2)
    with pytest.raises(InvalidError):
        world.ask(c.ChangeKeyspace(keyspace_id=keyspace.id, credential_locations=()))
    with pytest.raises(VersionConflictError):
        world.ask(c.ChangeKeyspace(keyspace_id=keyspace.id, name="x", expected_version=1))


def test_the_built_in_keyspace_stays_as_it_is() -> None:
    world = World()

    with pytest.raises(BuiltinError):
        world.ask(c.ChangeKeyspace(keyspace_id=world.root.keyspace_id, name="x"))


def test_a_plan_names_its_models_or_says_that_it_means_all() -> None:
    world = World()

    with pytest.raises(InvalidError):
        world.plan(models=())
    with pytest.raises(InvalidError):
        world.plan(price_multiplier="1.2345678")
    plan = world.plan(models=("opus",))
    changed = world.ask(c.ChangePlan(plan_id=plan.id, models="*", expected_version=1))

    assert (changed.models, changed.price_multiplier, changed.version) == ("*", "1", 2)
