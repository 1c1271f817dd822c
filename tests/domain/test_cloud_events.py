"""Events in their public form: CloudEvents 1.0, with or without personal fields."""

import json
from typing import Any, get_args

import msgspec
import pytest

from domain.cloud_events import cloud_event, source_of, subject_of, to_json
from domain.ids import place_of
from domain.publishing import Place, event_message
from keyledger_language import RateLimit, Scopes
from keyledger_language.events import (
    CreditsDeposited,
    Denial,
    Event,
    ExpirySet,
    KeyCreated,
    KeyRenamed,
    KeyRevoked,
    KeyspaceArchived,
    KeyspaceChanged,
    KeysSeen,
    LedgerEvent,
    Origin,
    PlanChanged,
    Private,
    ProjectOpened,
    Quota,
    RevocationFenced,
    ThresholdReached,
    UsageDenied,
)
from tests.moments import from_text

AT = from_text("2026-11-21T02:44:15.123456Z")
LATER = from_text("2026-12-01T00:00:00Z")
LATER_TEXT = "2026-12-01T00:00:00.000000Z"
ORGANIZATION = "org_01JD0000000000000000000000"
SOURCE = source_of("0b6a1f6e-4a52-4a37-9a53-6c7e4f8f8d11")

CREATED = KeyCreated(
    at=AT,
    actor="key_root",
    organization_id=ORGANIZATION,
    key_id="key_1",
    keyspace_id="ks_1",
    kind="solo",
    environment=None,
    plan_id=None,
    scopes=Scopes(models=("gpt-5",)),
    quotas=(Quota(unit="micros", window="month", limit=5_000_000),),
    rate_limits=(RateLimit(name="burst", limit=10, window_seconds=1),),
    expires_at=LATER,
    fingerprint=b"\x01" * 32,
    hint="kl_live_...x7Qz",
    private=Private(
        name="Ada's key",
        tags=("laptop",),
        metadata={"team": "compilers"},
        origin=Origin(ip="192.0.2.7", user_agent="curl"),
    ),
)


def shown(event: Event, *, personal: bool = True) -> dict[str, Any]:
    text = to_json(cloud_event(event, partition=0, epoch=1, number=42, source=SOURCE, personal=personal))
    found: dict[str, Any] = json.loads(text)
    return found


def data(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = shown(event)["data"]
    return found


def test_the_envelope_is_that_of_the_contract() -> None:
    found = shown(CREATED)

    assert {name: value for name, value in found.items() if name not in {"id", "data"}} == {
        "specversion": "1.0",
        "source": "urn:keyledger:0b6a1f6e-4a52-4a37-9a53-6c7e4f8f8d11",
        "type": "keyledger.KeyCreated",
        "subject": "key_1",
        "time": "2026-11-21T02:44:15.123456Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:keyledger:events:KeyCreated:1",
        "position": "0-42",
        "sequence": 42,
        "organizationid": ORGANIZATION,
        "actor": "key_root",
    }


def test_an_id_is_made_of_time_and_place_and_so_is_always_the_same() -> None:
    first, second = shown(CREATED)["id"], shown(CREATED)["id"]

    assert first == second
    assert first.startswith("evt_")
    assert place_of(first) == (0, 42)


def test_data_are_the_events_own_fields_with_the_personal_ones() -> None:
    assert data(CREATED) == {
        "key_id": "key_1",
        "keyspace_id": "ks_1",
        "kind": "solo",
        "environment": None,
        "plan_id": None,
        "scopes": {"permissions": "*", "projects": "*", "models": ["gpt-5"], "tenants": "*"},
        "quotas": [{"unit": "micros", "window": "month", "limit": 5_000_000, "alert_percents": []}],
        "rate_limits": [{"name": "burst", "limit": 10, "window_seconds": 1, "provider": None}],
        "expires_at": LATER_TEXT,
        "hint": "kl_live_...x7Qz",
        "bound_keyspace_id": None,
        "name": "Ada's key",
        "tags": ["laptop"],
        "metadata": {"team": "compilers"},
        "origin": {"ip": "192.0.2.7", "user_agent": "curl", "request_id": None},
    }


def test_without_personal_fields_none_of_them_is_there() -> None:
    text = json.dumps(shown(CREATED, personal=False))

    for personal in ("Ada", "laptop", "compilers", "192.0.2.7", "curl", "private", "origin"):
        assert personal not in text


def test_a_fingerprint_is_never_shown() -> None:
    assert "fingerprint" not in json.dumps(shown(CREATED))


def test_instants_are_rfc_3339_wherever_they_stand() -> None:
    expiry = ExpirySet(at=AT, key_id="key_1", expires_at=None, before=LATER)
    seen = KeysSeen(at=AT, seen=(("key_1", LATER, 3),))
    denied = UsageDenied(
        at=AT,
        key_id="key_1",
        counts={"rate_limited": 2},
        requests=(Denial(request_id="r1", code="rate_limited", at=LATER),),
    )
    renamed = KeyRenamed(at=AT, key_id="key_1", private=Private(name="new", before={"name": "old"}))
    changed = PlanChanged(at=AT, plan_id="plan_1", changes={"ends_at": LATER}, before={"ends_at": None})

    assert data(expiry) == {"key_id": "key_1", "expires_at": None, "before": LATER_TEXT}
    assert data(seen)["seen"] == [{"key_id": "key_1", "last_used_at": LATER_TEXT, "verifications": 3}]
    assert data(denied)["requests"] == [
        {
            "request_id": "r1", "code": "rate_limited", "at": LATER_TEXT,
            **dict.fromkeys((
                "amount_micros", "base_micros", "price_multiplier", "model", "provider", "project_id",
                "tenant_org_id", "tenant_user_id",
            )),
        }
    ]  # fmt: skip
    assert data(renamed) == {"key_id": "key_1", "name": "new", "before": {"name": "old"}}
    assert data(changed)["changes"] == {"ends_at": LATER_TEXT}


def test_a_windows_first_day_is_a_time_too() -> None:
    assert data(QUOTA_REACHED)["window_start"] == "2024-10-04T00:00:00.000000Z"


def test_positions_inside_are_positions_outside() -> None:
    fenced = RevocationFenced(
        at=AT,
        fenced=(7, 8),
        committed_at=AT,
        fenced_at=LATER,
        edges_acknowledged=2,
        edges_expired=0,
    )

    assert data(fenced)["fenced"] == ["0-7", "0-8"]
    assert data(fenced)["fenced_at"] == LATER_TEXT


def test_money_is_a_whole_number_of_micros_of_any_size() -> None:
    most = 2**63 - 1
    deposited = CreditsDeposited(
        at=AT, organization_id=ORGANIZATION, balance_micros=most, reserved_micros=0, amount_micros=most,
        reference="r",
    )  # fmt: skip

    assert data(deposited)["amount_micros"] == most


QUOTA_REACHED = ThresholdReached(
    at=AT,
    organization_id=ORGANIZATION,
    level="project",
    subject_id="prj_1",
    unit="micros",
    window="day",
    window_start=20_000,
    percent=80,
    limit=100,
    value=80,
)
SUBJECTS = [
    (KeyRevoked(at=AT, key_id="key_1", organization_id=ORGANIZATION), "key_1"),
    (KeyspaceChanged(at=AT, keyspace_id="ks_1", changes={}, before={}), "ks_1"),
    (KeyspaceArchived(at=AT, keyspace_id="ks_1"), "ks_1"),
    (PlanChanged(at=AT, plan_id="plan_1", changes={}, before={}), "plan_1"),
    (ProjectOpened(at=AT, project_id="prj_1", organization_id=ORGANIZATION), "prj_1"),
    (QUOTA_REACHED, "prj_1"),
    (KeysSeen(at=AT, seen=(), organization_id=ORGANIZATION), ORGANIZATION),
    (KeysSeen(at=AT, seen=()), "platform"),
]


@pytest.mark.parametrize("event, subject", SUBJECTS)
def test_the_subject_is_the_key_or_else_what_the_event_is_about(event: Event, subject: str) -> None:
    assert subject_of(event) == subject


ON_NATS = [
    (KeyRevoked(at=AT, key_id="key_1", organization_id=ORGANIZATION), f"{ORGANIZATION}.key_1.KeyRevoked"),
    (
        ProjectOpened(at=AT, project_id="prj_1", organization_id=ORGANIZATION),
        f"{ORGANIZATION}._.ProjectOpened",
    ),
    (KeysSeen(at=AT, seen=()), "_._.KeysSeen"),
]


@pytest.mark.parametrize("event, subject", ON_NATS)
def test_on_nats_the_subject_names_organization_key_and_type(event: Event, subject: str) -> None:
    place = Place("log", 3, 0, 42, mark=-2)

    message = event_message(event, place, source=SOURCE, most_bytes=1_000_000)

    assert message.subject == f"keyledger.events.{subject}"
    assert message.headers == {
        "Nats-Msg-Id": "3.0.42",
        "Keyledger-Log": "log",
        "Keyledger-Mark": "fffffffffffffffe",
    }


def test_every_event_there_is_can_be_shown() -> None:
    for kind in get_args(LedgerEvent):
        event = msgspec.convert({"type": kind.__struct_config__.tag, **_some_fields(kind)}, kind)
        found = shown(event)
        assert found["type"] == f"keyledger.{kind.__name__}"
        for name in kind.__struct_fields__:
            in_envelope = name in {"at", "actor", "organization_id", "private", "fingerprint"}
            assert in_envelope or name in found["data"], (kind.__name__, name)


def _some_fields(kind: type[Event]) -> dict[str, Any]:
    return {field.encode_name: _some(field.type) for field in msgspec.structs.fields(kind) if field.required}


def _some(kind: Any) -> Any:
    info = msgspec.inspect.type_info(kind)
    return _of(info)


def _of(info: Any) -> Any:
    if isinstance(info, msgspec.inspect.UnionType):
        return None if info.includes_none else _of(info.types[0])
    if isinstance(info, msgspec.inspect.LiteralType):
        return info.values[0]
    if isinstance(info, msgspec.inspect.StructType):
        return {field.encode_name: _of(field.type) for field in info.fields if field.required}
    return _PLAIN.get(type(info), [])


_PLAIN: dict[type, Any] = {
    msgspec.inspect.StrType: "1",
    msgspec.inspect.IntType: 1,
    msgspec.inspect.BoolType: True,
    msgspec.inspect.BytesType: b"1",
    msgspec.inspect.DictType: {},
}
