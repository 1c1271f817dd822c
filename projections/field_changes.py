"""What an event changed, for people: before and after."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from keyledger_language import events as e
from keyledger_language.instants import to_text

Facts = dict[str, Any]

_CARRIED: Final = frozenset({"at", "actor", "organization_id", "private", "before", "changes", "fingerprint"})
"""Shown elsewhere in an audit line, or (a fingerprint) of no use to people."""
_NAMES_OF_SUBJECTS: Final = frozenset({"key_id", "project_id"})
_INSTANTS: Final = frozenset({"expires_at", "older_end_at", "window_at", "committed_at", "fenced_at"})
_PRIVATE: Final = ("name", "owner_id", "metadata", "tags", "allowed_ips", "external_id")
_FLAGS: Final[dict[type[e.Event], tuple[Facts, Facts]]] = {
    e.OrganizationSuspended: ({"suspended": False}, {"suspended": True}),
    e.OrganizationResumed: ({"suspended": True}, {"suspended": False}),
    e.KeyspaceArchived: ({"archived": False}, {"archived": True}),
    e.ProjectArchived: ({"archived": False}, {"archived": True}),
    e.KeyDisabled: ({"disabled": False}, {"disabled": True}),
    e.KeyEnabled: ({"disabled": True}, {"disabled": False}),
    e.KeyRevoked: ({"revoked": False}, {"revoked": True}),
    e.KeyDeleted: ({"deleted": False}, {"deleted": True}),
    e.KeyExpired: ({"expired": False}, {"expired": True}),
}


def before_and_after(event: e.Event) -> tuple[Facts | None, Facts | None]:
    """The fields that an event changed, before and after the change; None if there are none."""
    if flags := _FLAGS.get(type(event)):
        return flags
    if isinstance(event, e.KeyspaceChanged | e.PlanChanged):
        return event.before, event.changes
    if isinstance(event, e.KeyRotated):
        return {"generation": event.generation - 1}, _after(event)
    if isinstance(event, e.CreditsDeposited | e.CreditsAdjusted):
        return {"balance_micros": event.balance_micros - event.amount_micros}, _after(event)
    return _before(event), _after(event)


def _before(event: e.Event) -> Facts | None:
    private = event.private.before if event.private is not None else None
    if not hasattr(event, "before"):
        return private
    public = _readable(event)["before"]
    if isinstance(event, e.WalletTermsSet):
        return dict(public)
    field = next(name for name in event.__struct_fields__ if name not in _CARRIED | _NAMES_OF_SUBJECTS)
    value = to_text(public) if field in _INSTANTS and public is not None else public
    return {field: value, **(private or {})}


def _after(event: e.Event) -> Facts | None:
    public = {name: value for name, value in _readable(event).items() if name not in _CARRIED | {"key_id"}}
    private = event.private
    if private is None:
        return public or None
    # A field that had a value before and has none now was removed: show that.
    told = private.before or {}
    values = {name: getattr(private, name) for name in _PRIVATE}
    personal = {name: value for name, value in values.items() if value is not None or name in told}
    return {**public, **msgspec.to_builtins(personal), **(private.after or {})} or None


def _readable(event: e.Event) -> Facts:
    """All fields as builtins, times as text."""
    facts: Facts = {name: getattr(event, name) for name in event.__struct_fields__ if name != "fingerprint"}
    facts.pop("private")
    readable: Facts = msgspec.to_builtins(facts)
    for name in _INSTANTS & readable.keys():
        if isinstance(readable[name], int):
            readable[name] = to_text(readable[name])
    return readable
