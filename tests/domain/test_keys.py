"""A key lives from its creation to its revocation; it outlives its secrets."""

from typing import Any

import pytest

from domain import commands as c
from domain.errors import (
    AlreadyExistsError,
    InvalidError,
    KeyExpiredError,
    KeyRevokedError,
    LedgerError,
    NotFoundError,
    PermissionDeniedError,
    VersionConflictError,
)
from keyledger_language import RateLimit
from keyledger_language import events as e
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, SECOND
from tests.domain.given import Shop, World, fingerprint_of, refusal_of


def test_a_new_key_may_do_everything_and_is_at_version_1() -> None:
    key = Shop().shopper

    assert (key.version, key.generation, key.kind) == (1, 1, "solo")
    assert key.scopes.permissions == key.scopes.projects == key.scopes.models == key.scopes.tenants == "*"


def test_a_secret_stands_for_one_key_for_ever() -> None:
    shop = Shop()
    shop.ask(c.DeleteKey(key_id=shop.shopper.id))

    with pytest.raises(AlreadyExistsError):
        shop.key(shop.gateway.id, shop.customer.id, secret="open sesame")
    other = shop.key(shop.gateway.id, shop.customer.id)
    with pytest.raises(AlreadyExistsError):
        shop.ask(c.RotateKey(key_id=other.id, fingerprint=fingerprint_of("open sesame"), hint=""))


def test_two_imports_of_one_secret_in_a_group_make_one_key() -> None:
    shop = Shop()
    command = c.CreateKey(
        keyspace_id=shop.gateway.id,
        organization_id=shop.customer.id,
        name="adopted",
        fingerprint=fingerprint_of("elsewhere"),
        hint="...",
        imported=True,
    )
    first, second = shop.together(command, command)

    assert first.imported is True
    assert isinstance(second, AlreadyExistsError)
    assert len(shop.all(e.KeyImported)) == 1


def test_a_fingerprint_is_a_sha256() -> None:
    shop = Shop()

    with pytest.raises(InvalidError):
        shop.key(shop.gateway.id, shop.customer.id, fingerprint=b"short")


UNFIT: dict[str, dict[str, Any]] = {
    "organization_id": {"organization_id": None},
    "bound_keyspace_id": {"bound_keyspace_id": "ks_1"},
    "quotas[0].limit": {"quotas": (Quota(unit="micros", window="day", limit=-1),)},
    "rate_limits[0].limit": {"rate_limits": (RateLimit(name="a", limit=0, window_seconds=1),)},
    "rate_limits[0].window_seconds": {"rate_limits": (RateLimit(name="a", limit=1, window_seconds=0),)},
    "rate_limits[1].name": {"rate_limits": (RateLimit(name="a", limit=1, window_seconds=1),) * 2},
    "allowed_ips[0]": {"allowed_ips": ("10.0.0.0/33",)},
    "plan_id": {"plan_id": "plan_none"},
    "expires_at": {"expires_at": Shop().now},
    "scopes.projects": {"scopes": c.NewScopes(projects=("prj_none",))},
}


@pytest.mark.parametrize("field", UNFIT)
def test_a_field_that_cannot_be_taken_is_named_and_nothing_happens(field: str) -> None:
    shop = Shop()
    head = shop.state.head
    fields: dict[str, Any] = {"organization_id": shop.customer.id, **UNFIT[field]}
    command = c.CreateKey(
        keyspace_id=shop.gateway.id, name="x", fingerprint=fingerprint_of("x"), hint="", **fields
    )

    with pytest.raises(LedgerError) as refused:
        shop.ask(command)
    assert refused.value.field == field
    assert shop.state.head == head


def test_an_ordinary_key_needs_a_keyspace_and_an_organization_that_are_there() -> None:
    shop = Shop()

    with pytest.raises(NotFoundError):
        shop.key("ks_none", shop.customer.id)
    with pytest.raises(NotFoundError):
        shop.key(shop.gateway.id, "org_none")


def test_each_thing_that_changes_is_an_event_of_its_own_and_what_stays_is_none() -> None:
    shop = Shop()
    head = shop.state.head
    shop.change(name="new name", environment="live", tags=("red",), owner_id=None, metadata={})

    assert [type(event) for event in shop.events[head:]] == [e.KeyRenamed, e.TagsSet, e.EnvironmentSet]
    assert shop.state.keys[shop.shopper.id].version == 4


def test_a_change_that_changes_nothing_is_harmless() -> None:
    shop = Shop()
    head = shop.state.head
    shop.change(name=shop.shopper.name)

    assert shop.state.head == head


def test_who_it_was_and_what_was_before_stand_in_the_encrypted_part() -> None:
    shop = Shop()
    shop.change(name="new name")
    renamed = shop.last(e.KeyRenamed)

    assert renamed.private is not None
    assert (renamed.private.name, renamed.private.before) == ("new name", {"name": "ada's key"})
    assert renamed.actor == shop.root.id


MATCHES = """
    none   accepted
    1      accepted
    2      version_conflict
    0      version_conflict
"""


@pytest.mark.parametrize("row", MATCHES.strip().splitlines())
def test_if_match_lets_only_the_present_version_be_changed(row: str) -> None:
    version, outcome = row.split()
    expected = None if version == "none" else int(version)
    for command in (
        c.ChangeKey,
        c.EditScopes,
        c.RotateKey,
        c.DisableKey,
        c.EnableKey,
        c.RevokeKey,
        c.DeleteKey,
    ):
        shop = Shop()
        more: dict[str, Any] = {}
        if command is c.EditScopes:
            more = {"scopes": c.NewScopes(models=("opus",))}
        if command is c.RotateKey:
            more = {"fingerprint": fingerprint_of("next"), "hint": ""}
        asked = command(key_id=shop.shopper.id, expected_version=expected, **more)

        assert refusal_of(shop, asked) == outcome, command


def test_a_charge_is_no_change_of_configuration_and_neither_is_an_expiry() -> None:
    shop = Shop(expires_at=Shop().now + 60 * SECOND)
    shop.charge(1)
    shop.wait(60).tick()

    assert isinstance(shop.events[-1], e.KeyExpired)
    assert shop.state.keys[shop.shopper.id].version == 1


def test_of_two_who_saw_the_same_version_the_second_is_told() -> None:
    shop = Shop()
    one = c.ChangeKey(key_id=shop.shopper.id, name="one", expected_version=1)
    other = c.ChangeKey(key_id=shop.shopper.id, name="other", expected_version=1)
    _, second = shop.together(one, other)

    assert isinstance(second, VersionConflictError)


def test_a_disabled_key_works_again_once_enabled_and_doing_it_twice_is_harmless() -> None:
    shop = Shop()
    for _ in range(2):
        shop.ask(c.DisableKey(key_id=shop.shopper.id))

    assert shop.charge(1).code == "disabled"

    for _ in range(2):
        shop.ask(c.EnableKey(key_id=shop.shopper.id))

    assert shop.charge(1).code == "valid"
    assert (len(shop.all(e.KeyDisabled)), len(shop.all(e.KeyEnabled))) == (1, 1)


def test_a_revoked_key_is_dead_for_good() -> None:
    shop = Shop()
    for _ in range(2):
        shop.ask(c.RevokeKey(key_id=shop.shopper.id, reason="leaked"))

    assert len(shop.all(e.KeyRevoked)) == 1
    assert shop.charge(1).code == "revoked"
    for command in (
        c.EnableKey(key_id=shop.shopper.id),
        c.DisableKey(key_id=shop.shopper.id),
        c.ChangeKey(key_id=shop.shopper.id, name="x"),
        c.EditScopes(key_id=shop.shopper.id, scopes=c.NewScopes()),
        c.RotateKey(key_id=shop.shopper.id, fingerprint=fingerprint_of("next"), hint=""),
    ):
        with pytest.raises(KeyRevokedError):
            shop.ask(command)


def test_many_are_revoked_at_once_each_on_its_own() -> None:
    shop = Shop()
    other = shop.key(shop.gateway.id, shop.customer.id)
    shop.ask(c.RevokeKey(key_id=other.id))
    happened = len(shop.placed)

    ended = shop.ask(c.RevokeKeys(key_ids=("key_none", shop.shopper.id, other.id, shop.shopper.id)))

    assert ended == [
        ("key_none", False, "not_found"),
        (shop.shopper.id, True, None),
        (other.id, True, "key_revoked"),
        (shop.shopper.id, True, None),
    ]
    assert [type(event) for event in shop.events[happened:]] == [e.KeyRevoked]


def test_a_caller_may_be_among_the_many() -> None:
    shop = Shop()
    ended = shop.ask(c.RevokeKeys(key_ids=(shop.root.id, shop.shopper.id)))

    assert [one.code for one in ended] == [None, None]
    assert len(shop.all(e.KeyRevoked)) == 2


def test_a_caller_without_keys_write_revokes_none_of_many() -> None:
    shop = Shop()

    with pytest.raises(PermissionDeniedError):
        shop.ask(c.RevokeKeys(key_ids=(shop.shopper.id,)), by=shop.root_key("keys:read"))


def test_a_deleted_key_is_revoked_and_not_there_any_more() -> None:
    shop = Shop()
    shop.ask(c.DeleteKey(key_id=shop.shopper.id))

    assert [type(event) for event in shop.events[-2:]] == [e.KeyRevoked, e.KeyDeleted]
    with pytest.raises(NotFoundError):
        shop.ask(c.RevokeKey(key_id=shop.shopper.id))


# -- expiry


def test_a_key_works_to_its_last_microsecond_and_its_end_is_recorded_once() -> None:
    shop = Shop(expires_at=Shop().now + 60 * SECOND)
    shop.wait(59.999_999)

    assert shop.charge(1).code == "valid"

    shop.wait(0.000_001)

    assert shop.charge(1).code == "expired"
    shop.tick().tick()
    assert len(shop.all(e.KeyExpired)) == 1


def test_a_clock_that_steps_back_revives_nothing() -> None:
    shop = Shop(expires_at=Shop().now + 60 * SECOND)
    shop.wait(60).tick()
    shop.wait(-3600)

    assert shop.charge(1).code == "expired"


def test_a_clock_that_steps_back_between_the_agenda_and_the_decision_loses_no_expiry() -> None:
    shop = Shop(expires_at=Shop().now + 60 * SECOND)
    shop.wait(60)
    due = shop._pop_due()
    shop.wait(-3600)
    shop.state.agenda += due
    popped = list(shop.state.agenda)
    shop.state.agenda.clear()
    group = shop.decide_with(popped)
    shop.commit(group)

    assert isinstance(shop.events[-1], e.KeyExpired)


def test_a_later_expiry_revives_an_expired_key_and_an_earlier_entry_of_the_agenda_is_forgotten() -> None:
    shop = Shop(expires_at=Shop().now + 60 * SECOND)
    shop.change(expires_at=shop.now + DAY)
    shop.wait(60)

    assert shop.charge(1).code == "valid"

    shop.wait(86_400).tick()
    shop.change(expires_at=None)

    assert shop.charge(1).code == "valid"
    assert len(shop.all(e.KeyExpired)) == 1


def test_an_expiry_is_in_the_future() -> None:
    shop = Shop()

    with pytest.raises(InvalidError):
        shop.change(expires_at=shop.now)
    shop.change(expires_at=shop.now + 1)


# -- secrets


def works(shop: Shop, secret: str) -> str:
    return shop.charge(0, key_id=None, fingerprint=fingerprint_of(secret), keyspace_id=shop.gateway.id).code


def rotate(shop: Shop, secret: str, *, overlap: int = 0) -> None:
    shop.ask(
        c.RotateKey(
            key_id=shop.shopper.id, fingerprint=fingerprint_of(secret), hint="...", overlap_seconds=overlap
        )
    )


def test_a_rotation_without_overlap_ends_the_old_secret_at_once() -> None:
    shop = Shop()
    rotate(shop, "second")

    assert (works(shop, "open sesame"), works(shop, "second")) == ("rotated", "valid")
    assert shop.state.keys[shop.shopper.id].generation == 2


def test_with_an_overlap_both_live_until_it_is_over_to_the_microsecond() -> None:
    shop = Shop()
    rotate(shop, "second", overlap=10)
    shop.wait(9.999_999)

    assert (works(shop, "open sesame"), works(shop, "second")) == ("valid", "valid")

    shop.wait(0.000_001)

    assert (works(shop, "open sesame"), works(shop, "second")) == ("rotated", "valid")
    assert [event.generation for event in shop.all(e.SecretRetired)] == [1]


def test_at_most_two_secrets_live() -> None:
    shop = Shop()
    rotate(shop, "second", overlap=100)
    rotate(shop, "third", overlap=100)

    assert [works(shop, one) for one in ("open sesame", "second", "third")] == ["rotated", "valid", "valid"]


def test_an_overlap_of_nothing_ends_all_older_ones() -> None:
    shop = Shop()
    rotate(shop, "second", overlap=100)
    rotate(shop, "third")

    assert [works(shop, one) for one in ("open sesame", "second", "third")] == ["rotated", "rotated", "valid"]
    shop.wait(200).tick()
    assert shop.all(e.SecretRetired) == []


def test_a_second_rotation_lengthens_no_overlap() -> None:
    shop = Shop()
    rotate(shop, "second", overlap=10)
    shop.wait(5)
    rotate(shop, "third", overlap=100)
    shop.wait(5)

    assert works(shop, "open sesame") == "rotated"


def test_a_rotation_gives_the_next_generation_and_the_version() -> None:
    shop = Shop()
    rotate(shop, "second")
    key = shop.state.keys[shop.shopper.id]

    assert (key.generation, key.version, key.rotated_at) == (2, 2, shop.now)


@pytest.mark.parametrize("overlap", [-1, 90 * 86_400 + 1])
def test_an_overlap_is_from_nothing_to_ninety_days(overlap: int) -> None:
    with pytest.raises(InvalidError):
        rotate(Shop(), "second", overlap=overlap)


def test_an_expired_key_gets_no_new_secret() -> None:
    shop = Shop(expires_at=Shop().now + SECOND)
    shop.wait(1)

    with pytest.raises(KeyExpiredError):
        rotate(shop, "second")


def test_a_revocation_kills_all_generations() -> None:
    shop = Shop()
    rotate(shop, "second", overlap=100)
    shop.ask(c.RevokeKey(key_id=shop.shopper.id))

    assert [works(shop, one) for one in ("open sesame", "second")] == ["revoked", "revoked"]


# -- holders of a secret


def test_whoever_holds_a_secret_may_kill_its_key() -> None:
    shop = Shop()
    himself = c.Asking(actor=shop.shopper.id, organization_id=shop.customer.id)
    for _ in range(2):
        shop.ask(c.RevokeSelf(fingerprint=fingerprint_of("open sesame")), by=himself)

    assert shop.last(e.KeyRevoked).actor == shop.shopper.id
    assert len(shop.all(e.KeyRevoked)) == 1


def test_a_secret_that_was_rotated_away_kills_nothing() -> None:
    # Others may have seen it since: the holder of the current one would suffer from it.
    shop = Shop()
    rotate(shop, "second")

    with pytest.raises(NotFoundError):
        shop.ask(c.RevokeSelf(fingerprint=fingerprint_of("open sesame")))


def test_a_root_key_is_not_killed_that_way_and_an_unknown_secret_kills_nothing() -> None:
    world = World()

    for secret in ("root", "unknown"):
        with pytest.raises(NotFoundError):
            world.ask(c.RevokeSelf(fingerprint=fingerprint_of(secret)))


def test_a_leaked_secret_kills_its_key_even_when_it_was_rotated_away() -> None:
    shop = Shop()
    rotate(shop, "second")
    report = c.ReportLeak(fingerprint=fingerprint_of("open sesame"), source="github", where="gist")
    shop.ask(report)

    assert [type(event) for event in shop.events[-2:]] == [e.LeakReported, e.KeyRevoked]
    assert shop.last(e.LeakReported).generation == 1


def test_a_leak_of_another_organizations_key_says_nothing_about_it() -> None:
    shop = Shop()
    stranger = shop.root_key("keys:write", organization_id=shop.organization().id)
    report = c.ReportLeak(fingerprint=fingerprint_of("open sesame"), source="github")

    with pytest.raises(NotFoundError) as refused:
        shop.ask(report, by=stranger)
    assert shop.shopper.id not in refused.value.detail
