"""The list of take-aways is whole: a new command, event or route that may take away fails here first."""

from __future__ import annotations

from typing import Final, get_args

import pytest

from domain import commands as c
from domain.changes import _GRANTING, narrows
from keyledger_language import events as e
from services.api.serving.app import ROUTES
from services.ledger.handlers import DECIDE, ENDS, RESTRICTS, may_take_away
from tests.take_aways.stage import play, staged
from tests.take_aways.table import TAKE_AWAYS

GRANTING_COMMANDS: Final[dict[type[c.Command], str]] = {
    c.DefineKeyspace: "makes something new",
    c.ArchiveKeyspace: "it has never had a key, so nothing of it was ever accepted",
    c.DefinePlan: "makes something new",
    c.OpenOrganization: "makes something new",
    c.OpenProject: "makes something new",
    c.CreateKey: "makes something new",
    c.BootstrapRootKey: "makes something new",
    c.EnableKey: "gives back",
    c.ResumeOrganization: "gives back",
    c.DepositCredits: "moves money, which the ledger alone counts",
    c.ChargeUsage: "moves money, which the ledger alone counts",
    c.ReserveCredits: "moves money, which the ledger alone counts",
    c.CaptureReservation: "moves money, which the ledger alone counts",
    c.ReleaseReservation: "moves money, which the ledger alone counts",
    c.RefundCharge: "moves money, which the ledger alone counts",
    c.RecordSeen: "the ledger's own record",
    c.RecordFence: "the ledger's own record",
    c.Tick: "records what time took away, which edges know by the clock",
}
EVENTS_BESIDE: Final[dict[type[e.Event], str]] = {
    e.KeyspaceDefined: "makes something new",
    e.PlanDefined: "makes something new",
    e.OrganizationOpened: "makes something new",
    e.OrganizationChanged: "name, external id and metadata allow nothing",
    e.ProjectRenamed: "a name allows nothing",
    e.ThresholdReached: "the ledger's own record",
    e.UsageDenied: "the ledger's own record",
    e.KeysSeen: "the ledger's own record",
    e.RevocationFenced: "the ledger's own record",
    e.CreditsDeposited: "moves money, which the ledger alone counts",
    e.CreditsAdjusted: "moves money, which the ledger alone counts",
    e.UsageCharged: "moves money, which the ledger alone counts",
    e.UsageRefunded: "moves money, which the ledger alone counts",
    e.CreditsReserved: "moves money, which the ledger alone counts",
    e.ReservationCaptured: "moves money, which the ledger alone counts",
    e.ReservationReleased: "moves money, which the ledger alone counts",
    e.ReservationExpired: "moves money, which the ledger alone counts",
}


def test_every_command_takes_away_or_it_is_said_why_not() -> None:
    commands = {*DECIDE, c.RefundCharge}
    takes_away = {*ENDS, *RESTRICTS}

    assert takes_away.isdisjoint(GRANTING_COMMANDS)
    assert takes_away | GRANTING_COMMANDS.keys() == commands


def test_every_command_that_takes_away_is_in_the_matrix() -> None:
    assert {one.command for one in TAKE_AWAYS.values()} == {*ENDS, *RESTRICTS}


def test_every_event_that_may_narrow_is_in_the_matrix_or_it_is_said_why_not() -> None:
    kinds: set[type[e.Event]] = set(get_args(e.LedgerEvent))
    in_matrix = {one.event for one in TAKE_AWAYS.values()}
    granting = {kind for kind in kinds if issubclass(kind, (*_GRANTING, e.KeyCreated))}

    assert in_matrix.isdisjoint(EVENTS_BESIDE)
    assert in_matrix.isdisjoint(granting)
    assert in_matrix | EVENTS_BESIDE.keys() | granting == kinds


def test_every_route_with_a_fence_is_in_the_matrix() -> None:
    fenced = {(one.method, one.path) for one in ROUTES if one.fenced}

    assert {(one.method, one.path) for one in TAKE_AWAYS.values()} == fenced


@pytest.mark.parametrize("name", TAKE_AWAYS)
def test_every_row_of_the_matrix_takes_away(name: str) -> None:
    async def taken() -> list[e.Event]:
        async with staged() as stage:
            [target] = await stage.targets([(name, name)])
            if name == "credit limit":
                path = f"/v1/organizations/{target.organization_id}/wallet"
                await stage.world.patch(path, {"credit_limit_micros": 1})
            ledger = stage.world.ledger
            before = ledger.books.head
            reply = await stage.take_away(name, target)
            assert (reply.status in {200, 201}, reply.json["fence"]["held"]) == (True, True), reply.body
            return [ledger._ports.mapper.decode(one) for one in stage.world.storage.events[before:]]

    kind = TAKE_AWAYS[name].event

    assert [event for event in play(taken()) if isinstance(event, kind) and narrows(event)]


@pytest.mark.parametrize(
    "command, yes",
    [
        (c.EditScopes(key_id="", scopes=c.NewScopes(models=("a",))), True),
        (c.EditScopes(key_id="", scopes=c.NewScopes(models="*")), False),
        (c.ChangeKey(key_id="", name="x", tags=("a",), metadata={}, owner_id="x", environment="e"), False),
        (c.ChangeKey(key_id="", expires_at=1), True),
        (c.ChangeKey(key_id="", expires_at=None), False),
        (c.ChangeKey(key_id="", quotas=()), False),
        (c.ChangeKey(key_id="", plan_id=None), True),
        (c.ChangePlan(plan_id="", price_multiplier="2"), False),
        (c.ChangeOrganization(organization_id="", name="x"), False),
        (c.ChangeProject(organization_id="", project_id="", quotas=()), False),
        (c.ChangeKeyspace(keyspace_id="", expected_version=1), False),
        (c.ChangeKeyspace(keyspace_id="", require_balance=False), True),
        (c.SetWalletTerms(organization_id="", alert_below_micros=1), False),
        (c.SetWalletTerms(organization_id="", credit_limit_micros=0), True),
        (c.EnableKey(key_id=""), False),
    ],
)
def test_what_names_no_limit_only_grants(command: c.Command, yes: bool) -> None:  # noqa: FBT001  # a table's column
    assert may_take_away(command) is yes
