"""Root keys: a caller grants no more than it holds, and sees no more than it is bound to."""

import pytest

from domain import commands as c
from domain.commands import Asking, Command
from domain.decisions.access import PLATFORM_PERMISSIONS, ROOT_PERMISSIONS
from domain.errors import CallerRefusedError, PermissionDeniedError
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from tests.domain.given import Shop, World, charge_id_of, fingerprint_of, refusal_of


def making(
    world: World, *permissions: str, organization_id: str | None = None, keyspace: str | None = None
) -> Command:
    return c.CreateKey(
        keyspace_id=world.root.keyspace_id,
        organization_id=organization_id,
        name="root",
        fingerprint=fingerprint_of(f"root {world.state.head}"),
        hint="",
        scopes=c.NewScopes(permissions=permissions),
        bound_keyspace_id=keyspace,
    )


def test_the_first_root_key_may_do_everything_by_name() -> None:
    assert World().root.scopes.permissions == ROOT_PERMISSIONS + PLATFORM_PERMISSIONS


def test_bootstrapping_twice_with_one_secret_makes_one_key() -> None:
    world = World()
    head = world.state.head
    again = c.BootstrapRootKey(name="root", fingerprint=fingerprint_of("root"), hint="")
    world.ask(again, by=Asking(actor="system"))

    assert world.state.head == head


def test_a_root_key_names_its_permissions() -> None:
    world = World()

    assert refusal_of(world, making(world, "verify")) == "accepted"
    assert refusal_of(world, making(world, "fly")) == "invalid_request"
    everything = c.CreateKey(
        keyspace_id=world.root.keyspace_id,
        organization_id=None,
        name="x",
        fingerprint=fingerprint_of("x"),
        hint="",
    )
    assert refusal_of(world, everything) == "invalid_request"


@pytest.mark.parametrize("permission", PLATFORM_PERMISSIONS)
def test_what_is_the_platforms_no_root_key_of_an_organization_gets(permission: str) -> None:
    world = World()
    organization = world.organization()

    assert refusal_of(world, making(world, permission, organization_id=organization.id)) == "invalid_request"


def test_a_caller_grants_no_more_than_it_holds() -> None:
    world = World()
    minor = world.root_key("root:write", "keys:write", "verify")

    assert refusal_of(world, making(world, "verify"), by=minor) == "accepted"
    assert refusal_of(world, making(world, "audit:read"), by=minor) == "permission_denied"


def test_making_root_keys_needs_root_write() -> None:
    world = World()

    assert (
        refusal_of(world, making(world, "keys:write"), by=world.root_key("keys:write")) == "permission_denied"
    )


def test_a_caller_that_is_bound_to_a_keyspace_makes_root_keys_of_that_keyspace_only() -> None:
    shop = Shop()
    bound = shop.root_key("root:write", "keys:write", "verify", keyspace_id=shop.gateway.id)
    other = shop.keyspace()

    assert refusal_of(shop, making(shop, "verify", keyspace=shop.gateway.id), by=bound) == "accepted"
    assert refusal_of(shop, making(shop, "verify"), by=bound) == "permission_denied"
    assert refusal_of(shop, making(shop, "verify", keyspace=other.id), by=bound) == "not_found"


def powers(world: World, key_id: str) -> list[Command]:
    return [
        c.RevokeKey(key_id=key_id),
        c.DisableKey(key_id=key_id),
        c.RotateKey(key_id=key_id, fingerprint=fingerprint_of("next"), hint=""),
        c.ChangeKey(key_id=key_id, name="mine"),
        c.ChangeKey(key_id=key_id, allowed_ips=("10.0.0.0/8",)),
        c.EditScopes(key_id=key_id, scopes=c.NewScopes(permissions=("verify",))),
        c.DeleteKey(key_id=key_id),
    ]


def test_acting_on_a_root_key_needs_root_write_and_powers_that_the_caller_holds_too() -> None:
    world = World()
    weak = world.root_key("keys:write", "verify")
    peer = world.root_key("keys:write", "root:write", "verify")
    stronger = world.root_key("keys:write", "verify", "audit:read")

    for command in powers(world, weak.actor):
        assert refusal_of(world, command, by=world.root_key("keys:write", "verify")) == "permission_denied"
    for command in powers(world, stronger.actor):
        assert refusal_of(world, command, by=peer) == "permission_denied"
    [among_many] = world.ask(c.RevokeKeys(key_ids=(stronger.actor,)), by=peer)
    assert (among_many.revoked, among_many.code) == (False, "permission_denied")
    assert refusal_of(world, c.RevokeKey(key_id=weak.actor), by=peer) == "accepted"


def test_a_root_key_without_root_write_does_not_lift_its_own_limits_either() -> None:
    # A thief of the key would remove its address list first.
    world = World()
    weak = world.root_key("keys:write", "verify")

    for command in powers(world, weak.actor):
        assert refusal_of(world, command, by=weak) == "permission_denied"


def test_an_edit_gives_a_root_key_nothing_that_the_caller_does_not_hold() -> None:
    world = World()
    peer = world.root_key("keys:write", "root:write", "verify")
    other = world.root_key("verify")
    wider = c.EditScopes(key_id=other.actor, scopes=c.NewScopes(permissions=("verify", "audit:read")))

    assert refusal_of(world, wider, by=peer) == "permission_denied"
    assert refusal_of(world, wider) == "accepted"


def test_everybody_elses_things_are_not_there_for_a_caller_of_an_organization() -> None:
    shop = Shop()
    mine = shop.organization(name="mine")
    project = shop.project(shop.customer.id)
    caller = shop.root_key("keys:write", "charges:write", organization_id=mine.id)
    foreign: list[Command] = [
        c.RevokeKey(key_id=shop.shopper.id),
        c.ChangeKey(key_id=shop.shopper.id, name="x"),
        c.RevokeKey(key_id=shop.root.id),
        c.CreateKey(
            keyspace_id=shop.gateway.id,
            organization_id=shop.customer.id,
            name="x",
            fingerprint=fingerprint_of("x"),
            hint="",
        ),
        c.ChargeUsage(key_id=shop.shopper.id, request_id="x", base_micros=1),
    ]

    assert [refusal_of(shop, command, by=caller) for command in foreign] == ["not_found"] * len(foreign)
    # Its own organization's keys exist for it, but they cannot name another organization's project.
    own = shop.key(shop.gateway.id, mine.id)
    edit = c.EditScopes(key_id=own.id, scopes=c.NewScopes(projects=(project.id,)))
    assert refusal_of(shop, edit, by=caller) == "invalid_request"
    assert refusal_of(shop, c.RevokeKey(key_id=own.id), by=caller) == "accepted"


def test_a_caller_of_a_keyspace_reaches_the_keys_of_that_keyspace_only() -> None:
    shop = Shop()
    elsewhere = shop.key(shop.keyspace().id, shop.customer.id)
    caller = shop.root_key("keys:write", keyspace_id=shop.gateway.id)

    assert refusal_of(shop, c.RevokeKey(key_id=elsewhere.id), by=caller) == "not_found"
    assert refusal_of(shop, c.RevokeKey(key_id=shop.shopper.id), by=caller) == "accepted"


def test_assigning_a_plan_is_the_platforms_quotas_of_its_keys_are_an_organizations_own() -> None:
    shop = Shop()
    plan = shop.plan()
    caller = shop.root_key("keys:write", organization_id=shop.customer.id)
    key_id = shop.shopper.id
    quota = Quota(unit="micros", window="day", limit=5)

    assert refusal_of(shop, c.ChangeKey(key_id=key_id, plan_id=plan.id), by=caller) == "platform_only"
    assert refusal_of(shop, c.ChangeKey(key_id=key_id, quotas=(quota,)), by=caller) == "accepted"
    shop.change(plan_id=plan.id)
    assert refusal_of(shop, c.ChangeKey(key_id=key_id, plan_id=None), by=caller) == "platform_only"
    assert refusal_of(shop, c.ChangeKey(key_id=key_id, plan_id=plan.id), by=caller) == "accepted"


# before, after: may an organization's own caller do it? (- is no quota)
LIFTS = """
    10   10   yes
    10    9   yes
    10   11   no
    10    -   no
    -    10   yes
"""


@pytest.mark.parametrize("row", LIFTS.strip().splitlines())
def test_lifting_an_organizations_quota_is_the_platforms_lowering_it_is_not(row: str) -> None:
    before, after, allowed = row.split()

    def quotas(limit: str) -> tuple[Quota, ...]:
        return () if limit == "-" else (Quota(unit="micros", window="day", limit=int(limit)),)

    world = World()
    organization = world.organization(quotas=quotas(before))
    # No root key of an organization has organizations:write today; the rule must not depend on that.
    bound = Asking(actor=world.root.id, organization_id=organization.id)
    command = c.ChangeOrganization(organization_id=organization.id, quotas=quotas(after))

    assert refusal_of(world, command, by=bound) == ("accepted" if allowed == "yes" else "platform_only")


@pytest.mark.parametrize("ended", ["revoked", "disabled", "expired"])
def test_a_caller_that_does_not_work_any_more_does_nothing_more(ended: str) -> None:
    shop = Shop()
    caller = shop.root_key("keys:write", "charges:write")
    if ended == "revoked":
        shop.ask(c.RevokeKey(key_id=caller.actor))
    elif ended == "disabled":
        shop.ask(c.DisableKey(key_id=caller.actor))
    else:
        shop.ask(c.ChangeKey(key_id=caller.actor, expires_at=shop.now + SECOND))
        shop.wait(1)

    for command in (c.RevokeKey(key_id=shop.shopper.id), shop.charging(1)):
        with pytest.raises(CallerRefusedError):
            shop.ask(command, by=caller)


def moving_money(shop: Shop) -> dict[str, Command]:
    """All commands that move money, and repetitions of them, for a shop that would carry them out."""
    charged, given_back = shop.charge(10, "charge-1"), shop.charge(10)
    shop.refund(charge_id_of(given_back), request_id="refund-1")
    held = shop.hold(10)
    taken = shop.hold(10)
    shop.capture(taken, 5, request_id="capture-1", final=False)
    released = shop.hold(10)
    shop.release(released)
    return {
        "charge": shop.charging(1),
        "reserve": c.ReserveCredits(
            request_id="reserve-1", base_micros=1, key_id=shop.shopper.id, expires_in_seconds=60
        ),
        "refund": c.RefundCharge(charge_id=charge_id_of(charged), request_id="refund-2"),
        "capture": c.CaptureReservation(reservation_id=held, request_id="capture-2", base_micros=1),
        "release": c.ReleaseReservation(reservation_id=held),
        "charge again": shop.charging(10, "charge-1"),
        "refund again": c.RefundCharge(charge_id=charge_id_of(given_back), request_id="refund-1"),
        "capture again": c.CaptureReservation(
            reservation_id=taken, request_id="capture-1", base_micros=5, final=False
        ),
        "release again": c.ReleaseReservation(reservation_id=released),
    }


@pytest.mark.parametrize(
    "what",
    [
        "charge", "reserve", "refund", "capture", "release",
        "charge again", "refund again", "capture again", "release again",
    ],
)  # fmt: skip
def test_a_caller_that_died_since_it_was_let_in_moves_no_money(what: str) -> None:
    """A root key may be revoked between authentication and decision, by the request just before."""
    shop = Shop()
    command = moving_money(shop)[what]
    caller = shop.root_key("charges:write")
    before = shop.purse.copy(), len(shop.events)
    _, refused = shop.together(c.RevokeKey(key_id=caller.actor), (command, caller))

    assert isinstance(refused, CallerRefusedError)
    assert (shop.purse, len(shop.events)) == (before[0], before[1] + 1)

    allowed = shop.ask(command, by=shop.root_key("charges:write"))

    assert getattr(allowed, "code", "valid") == "valid"


def test_a_permission_that_was_taken_away_is_gone_in_the_same_group() -> None:
    shop = Shop()
    caller = shop.root_key("keys:write", "verify")
    taking = c.EditScopes(key_id=caller.actor, scopes=c.NewScopes(permissions=("verify",)))
    _, refused = shop.together(taking, (c.RevokeKey(key_id=shop.shopper.id), caller))

    assert isinstance(refused, PermissionDeniedError)


def test_root_keys_are_not_imported() -> None:
    world = World()
    command = c.CreateKey(
        keyspace_id=world.root.keyspace_id,
        organization_id=None,
        name="x",
        fingerprint=fingerprint_of("x"),
        hint="",
        scopes=c.NewScopes(permissions=("verify",)),
        imported=True,
    )

    assert refusal_of(world, command) == "invalid_request"
