"""What an audit line says of an event: before and after, without a fingerprint."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keyledger_language import RateLimit, Scopes
from keyledger_language import events as e
from keyledger_language.instants import DAY
from projections.audit import AUDITED, METERED, entry_of
from projections.field_changes import before_and_after
from projections.statements import LINES
from tests.histories import NOON, ROOT, History

WHERE = {"at": NOON, "actor": ROOT, "organization_id": "org_1"}
KEY = {**WHERE, "key_id": "key_1"}
QUOTA = e.Quota(unit="micros", window="month", limit=5)

CHANGES: list[tuple[e.Event, dict[str, Any] | None, dict[str, Any] | None]] = [
    (
        e.KeyRenamed(**KEY, private=e.Private(name="new", before={"name": "old"})),  # type: ignore[arg-type]  # fields
        {"name": "old"},
        {"name": "new"},
    ),
    (
        e.OwnerAssigned(**KEY, private=e.Private(before={"owner_id": "ann"})),  # type: ignore[arg-type]
        {"owner_id": "ann"},
        {"owner_id": None},
    ),
    (
        e.ExpirySet(**KEY, expires_at=DAY, before=None),  # type: ignore[arg-type]
        {"expires_at": None},
        {"expires_at": "1970-01-02T00:00:00.000000Z"},
    ),
    (
        e.ExpirySet(**KEY, expires_at=None, before=DAY),  # type: ignore[arg-type]
        {"expires_at": "1970-01-02T00:00:00.000000Z"},
        {"expires_at": None},
    ),
    (
        e.QuotasSet(**KEY, quotas=(QUOTA,), before=()),  # type: ignore[arg-type]
        {"quotas": []},
        {"quotas": [{"unit": "micros", "window": "month", "limit": 5}]},
    ),
    (
        e.RateLimitsSet(**KEY, rate_limits=(), before=(RateLimit(name="burst", limit=1, window_seconds=2),)),  # type: ignore[arg-type]
        {"rate_limits": [{"name": "burst", "limit": 1, "window_seconds": 2, "provider": None}]},
        {"rate_limits": []},
    ),
    (
        e.ScopesEdited(**KEY, scopes=Scopes(models=("opus",)), before=Scopes()),  # type: ignore[arg-type]
        {"scopes": {"permissions": "*", "projects": "*", "models": "*", "tenants": "*"}},
        {"scopes": {"permissions": "*", "projects": "*", "models": ["opus"], "tenants": "*"}},
    ),
    (e.KeyDisabled(**KEY), {"disabled": False}, {"disabled": True}),  # type: ignore[arg-type]
    (
        e.PlanChanged(at=NOON, plan_id="plan_1", changes={"name": "b"}, before={"name": "a"}),
        {"name": "a"},
        {"name": "b"},
    ),
    (
        e.CreditsDeposited(
            **WHERE,  # type: ignore[arg-type]
            balance_micros=7,
            reserved_micros=0,
            amount_micros=5,
            reference="invoice",
        ),
        {"balance_micros": 2},
        {"balance_micros": 7, "reserved_micros": 0, "amount_micros": 5, "reference": "invoice"},
    ),
]


@pytest.mark.parametrize("event, before, after", CHANGES)
def test_a_change_is_told_by_the_fields_that_it_changed(
    event: e.Event, before: dict[str, object] | None, after: dict[str, object] | None
) -> None:
    assert [before, after] == msgspec.json.decode(msgspec.json.encode(before_and_after(event)))


def test_an_audit_line_of_any_event_can_be_sent_as_json_and_holds_no_fingerprint() -> None:
    history = History(51)
    history.grow(1_500)
    for position, event in enumerate(history.events, start=1):
        line = msgspec.json.encode(entry_of(position, event))

        assert b"fingerprint" not in line
        assert b"private" not in line


def test_an_audit_line_whose_personal_fields_are_gone_still_tells_the_rest() -> None:
    history = History(52)
    history.grow(500)
    for position, event in enumerate(history.events, start=1):
        line = entry_of(position, msgspec.structs.replace(event, private=None))

        assert (line.position, line.action, line.ip) == (position, e.public_name(event), None)


def test_every_event_is_audited_or_metered() -> None:
    assert not set(AUDITED) & set(METERED)
    assert len(AUDITED) + len(METERED) == len(e.LedgerEvent.__args__)


def test_every_event_that_moves_money_is_a_line_of_the_statement() -> None:
    money = {kind for kind in e.LedgerEvent.__args__ if issubclass(kind, e.WalletEvent)}

    assert money == set(LINES)
