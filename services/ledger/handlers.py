"""Which decision handles which command, and how a repeated command is recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domain import commands as c
from domain.claims import command_claim
from domain.decisions import charging, keys, keyspaces, organizations, reservations, wallets
from domain.desk import Desk
from domain.errors import InvalidError
from keyledger_language import events as e

_MOST_KEYS_AT_ONCE = 4_000
"""One command is one commit, and a commit has a bound."""

Decide = Callable[[Desk, Any], Any]


def record_seen(desk: Desk, command: c.RecordSeen) -> None:
    """Record what was seen and refused."""
    known = tuple(one for one in command.seen if desk.draft.keys.find(one[0]) is not None)
    if known:
        desk.record(e.KeysSeen(at=desk.now, seen=known))
    for denied in command.denied:
        key = desk.draft.keys.find(denied.key_id)
        if key is not None:
            desk.record(
                e.UsageDenied(
                    at=desk.now,
                    organization_id=key.organization_id,
                    private=e.Private(metadata=denied.metadata) if denied.metadata else None,
                    key_id=key.id,
                    counts=denied.counts,
                    requests=denied.requests,
                )
            )


def record_fence(desk: Desk, command: c.RecordFence) -> None:
    """Record a fence's receipt; once, whichever process does it."""
    digest = command_claim(f"fence/{desk.partition}/{command.fenced[-1]}")
    desk.record(
        e.RevocationFenced(
            at=desk.now,
            fenced=command.fenced,
            committed_at=command.committed_at,
            fenced_at=command.fenced_at,
            edges_acknowledged=command.edges_acknowledged,
            edges_expired=command.edges_expired,
            last_accept_at=command.last_accept_at,
        )
    )
    desk.claim(digest)


def revoke_keys(desk: Desk, command: c.RevokeKeys) -> list[keys.Revocation]:
    """Revoke many keys, at most as many as one commit can hold."""
    if len(command.key_ids) > _MOST_KEYS_AT_ONCE:
        raise InvalidError("key_ids", f"at most {_MOST_KEYS_AT_ONCE} keys at once")
    return keys.revoke_keys(desk, command)


def _nothing(_: Desk, __: c.Tick) -> None:
    """What was due was recorded before this is called."""


DECIDE: dict[type[c.Command], Decide] = {
    c.DefineKeyspace: keyspaces.define_keyspace,
    c.ChangeKeyspace: keyspaces.change_keyspace,
    c.ArchiveKeyspace: keyspaces.archive_keyspace,
    c.DefinePlan: keyspaces.define_plan,
    c.ChangePlan: keyspaces.change_plan,
    c.OpenOrganization: organizations.open_organization,
    c.ChangeOrganization: organizations.change_organization,
    c.SuspendOrganization: organizations.suspend_organization,
    c.ResumeOrganization: organizations.resume_organization,
    c.OpenProject: organizations.open_project,
    c.ChangeProject: organizations.change_project,
    c.ArchiveProject: organizations.archive_project,
    c.CreateKey: keys.create_key,
    c.ChangeKey: keys.change_key,
    c.EditScopes: keys.edit_scopes,
    c.RotateKey: keys.rotate_key,
    c.DisableKey: keys.disable_key,
    c.EnableKey: keys.enable_key,
    c.RevokeKey: keys.revoke_key,
    c.RevokeKeys: revoke_keys,
    c.DeleteKey: keys.delete_key,
    c.RevokeSelf: keys.revoke_self,
    c.ReportLeak: keys.report_leak,
    c.BootstrapRootKey: keys.bootstrap_root_key,
    c.DepositCredits: wallets.deposit,
    c.SetWalletTerms: wallets.set_terms,
    c.ChargeUsage: charging.meter,
    c.ReserveCredits: charging.meter,
    c.CaptureReservation: reservations.capture,
    c.ReleaseReservation: reservations.release,
    c.RecordSeen: record_seen,
    c.RecordFence: record_fence,
    c.Tick: _nothing,
}
"""`RefundCharge` is not here: it is decided with the charge that it refunds."""

CLAIM: dict[type[c.Command], Callable[[Desk, Any], bytes | None]] = {
    c.ChargeUsage: charging.claim_of,
    c.ReserveCredits: charging.claim_of,
    c.CaptureReservation: reservations.capture_claim,
    c.DepositCredits: wallets.deposit_claim,
    c.RecordFence: lambda desk, command: command_claim(f"fence/{desk.partition}/{command.fenced[-1]}"),
}
"""The name that a command may take only once."""

REPLAY: dict[type[c.Command], Callable[[Desk, Any, e.Event, int], Any]] = {
    c.ChargeUsage: charging.replay,
    c.ReserveCredits: charging.replay,
    c.CaptureReservation: reservations.replay_capture,
    c.DepositCredits: wallets.replay_deposit,
    c.RecordFence: lambda *_: None,
}
"""The answer to a command whose name was taken before."""

ENDS: frozenset[type[c.Command]] = frozenset(
    {
        c.SuspendOrganization,
        c.ArchiveProject,
        c.RotateKey,
        c.DisableKey,
        c.RevokeKey,
        c.RevokeKeys,
        c.DeleteKey,
        c.RevokeSelf,
        c.ReportLeak,
    }
)
"""Commands whose purpose is to take something away: the caller relies on it being taken away."""

RESTRICTS: dict[type[c.Command], Callable[[Any], bool]] = {
    c.ChangeKeyspace: lambda command: _sets(command, besides=("keyspace_id", "expected_version")),
    c.ChangePlan: lambda command: command.models is not c.UNSET,
    c.ChangeOrganization: lambda command: _some(command.quotas),
    c.ChangeProject: lambda command: _some(command.quotas),
    c.ChangeKey: lambda command: (
        command.plan_id is not c.UNSET
        or command.rate_limits is not c.UNSET
        or command.allowed_ips is not c.UNSET
        or _some(command.quotas)
        or _some(command.expires_at)
    ),
    c.EditScopes: lambda command: any(
        getattr(command.scopes, name) not in (c.UNSET, "*") for name in command.scopes.__struct_fields__
    ),
    c.SetWalletTerms: lambda command: command.credit_limit_micros not in (c.UNSET, None),
}
"""Commands that set limits, and whether a given one names any: then it may take away, or widen.

A command that is in neither table only grants, and waits for no fence.
"""


def may_take_away(command: c.Command) -> bool:
    """Whether the command may take something away: then it is answered once no edge can accept that."""
    kind = type(command)
    if kind in ENDS:
        return True
    restricts = RESTRICTS.get(kind)
    return restricts is not None and restricts(command)


def _sets(command: c.Command, besides: tuple[str, ...]) -> bool:
    return any(
        getattr(command, name) is not c.UNSET for name in command.__struct_fields__ if name not in besides
    )


def _some(given: Any) -> bool:
    """Whether a limit is named: not left out, not null, not an empty list."""
    return given is not c.UNSET and bool(given)
