"""Money over the wire, by the contract: wallets, plans, quotas, charges, refunds, reservations, verdicts."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.ledgers import until
from tests.e2e.running import UNIT, Answer, Json, Made, Running, done, refused

WALLET_FIELDS = {
    "currency",
    "balance_micros",
    "reserved_micros",
    "available_micros",
    "credit_limit_micros",
    "alert_below_micros",
}
QUOTA_CODES = {
    "key": "api_key_quota_exceeded",
    "project": "project_quota_exceeded",
    "organization": "organization_quota_exceeded",
}
MOST = 2**63 - 1


def charge(running: Running, made: Made, micros: int, /, **use: Any) -> Answer:
    asked = {"key_id": made.id, "request_id": running.name("use"), "amount_micros": micros} | use
    return running.root.ask("POST", "/v1/charges", asked)


def charged(running: Running, made: Made, micros: int, /, **use: Any) -> Json:
    return done(charge(running, made, micros, **use), 201)


def reserved(running: Running, made: Made, micros: int, /, **use: Any) -> Json:
    asked = {
        "key_id": made.id,
        "request_id": running.name("hold"),
        "amount_micros": micros,
        "expires_in_seconds": 600,
    }
    return running.root.post("/v1/reservations", asked | use, 201)


def capture(running: Running, reservation: Json, micros: int, /, **more: Any) -> Answer:
    asked = {"request_id": running.name("capture"), "amount_micros": micros} | more
    return running.root.ask("POST", f"/v1/reservations/{reservation['id']}/capture", asked)


@pytest.fixture
def customer(running: Running) -> Made:
    """A key of a customer with one unit."""
    return running.key(running.organization(UNIT))


def wallet(running: Running, made: Made) -> Json:
    return running.wallet(made.key["organization_id"])


# -- wallets


def test_a_new_wallet_is_empty_and_prepaid(running: Running) -> None:
    found = running.wallet(running.organization())

    assert found.keys() >= WALLET_FIELDS
    assert (found["balance_micros"], found["reserved_micros"], found["available_micros"]) == (0, 0, 0)
    assert (found["credit_limit_micros"], found["alert_below_micros"]) == (0, None)


def test_the_same_reference_counts_once(running: Running) -> None:
    organization_id = running.organization()
    credits_ = f"/v1/organizations/{organization_id}/wallet/credits"
    first = running.root.post(credits_, {"amount_micros": 5, "reference": "invoice-1"}, 201)
    again = running.root.post(credits_, {"amount_micros": 5, "reference": "invoice-1"}, 201)

    assert (first["replayed"], again["replayed"]) == (False, True)
    assert running.wallet(organization_id)["balance_micros"] == 5
    other = running.root.ask("POST", credits_, {"amount_micros": 6, "reference": "invoice-1"})
    refused(other, 409, "idempotency_conflict")
    assert running.root.post(credits_, {"amount_micros": -2, "reference": "correction"}, 201)
    assert running.wallet(organization_id)["balance_micros"] == 3


def test_a_credit_limit_lets_a_wallet_go_below_zero(running: Running) -> None:
    made = running.key(running.organization())
    path = f"/v1/organizations/{made.key['organization_id']}/wallet"
    changed = running.root.patch(path, {"credit_limit_micros": 10, "alert_below_micros": 3})
    assert (changed["credit_limit_micros"], changed["alert_below_micros"]) == (10, 3)

    charged(running, made, 10)
    refused(charge(running, made, 1), 402, "billing_shortfall")
    running.root.patch(path, {"credit_limit_micros": None})
    charged(running, made, UNIT)
    assert wallet(running, made)["balance_micros"] == -UNIT - 10


def test_a_statement_has_every_line_with_its_position(running: Running, customer: Made) -> None:
    charged(running, customer, 100)
    path = f"/v1/organizations/{customer.key['organization_id']}/wallet/statement"
    page = running.root.get(path, sort="at")

    assert [one["amount_micros"] for one in page["items"]] == [UNIT, -100]
    assert [one["balance_micros"] for one in page["items"]] == [UNIT, UNIT - 100]
    positions = [one["position"] for one in page["items"]]
    assert len(set(positions)) == 2
    first = running.root.get(path, sort="at", limit=1)
    assert first["next_cursor"] is not None
    rest = running.root.get(path, sort="at", limit=1, cursor=first["next_cursor"])
    assert [one["position"] for one in first["items"] + rest["items"]] == positions


BAD_CREDITS = [
    ({"reference": "x"}, "amount_micros"),
    ({"amount_micros": 1}, "reference"),
    ({"amount_micros": 1.5, "reference": "x"}, "amount_micros"),
    ({"amount_micros": "1", "reference": "x"}, "amount_micros"),
    ({"amount_micros": 2**63, "reference": "x"}, "amount_micros"),
    ({"amount_micros": 1, "reference": ""}, "reference"),
    ({"amount_micros": 1, "reference": "x", "currency": "EUR"}, "currency"),
]


@pytest.mark.parametrize("body,field", BAD_CREDITS)
def test_a_bad_credit_is_named_by_its_field(running: Running, body: Json, field: str) -> None:
    organization_id = running.organization()
    answer = running.root.ask("POST", f"/v1/organizations/{organization_id}/wallet/credits", body)

    refused(answer, 400, "invalid_request", field)
    assert running.wallet(organization_id)["balance_micros"] == 0


# -- charges


def test_a_charge_says_what_was_taken_and_what_is_left(running: Running, customer: Made) -> None:
    request_id = running.name("use")
    use = {
        "model": "gpt-5",
        "provider": "openai",
        "project_id": running.project(customer.key["organization_id"]),
        "tenant": {"user_id": "u1"},
        "metadata": {"trace": "t"},
    }
    answer = charged(running, customer, 100, request_id=request_id, **use)
    told = answer["charge"]

    assert answer.keys() >= {"charge", "position", "replayed", "quotas", "wallet"}
    assert told["id"].startswith("chg_")
    assert (told["base_micros"], told["price_multiplier"], told["amount_micros"]) == (100, "1", 100)
    assert (told["request_id"], told["key_id"]) == (request_id, customer.id)
    for name in ("model", "provider", "project_id", "metadata"):
        assert told[name] == use[name]
    assert told["tenant"] == {"org_id": None, "user_id": "u1"}
    assert answer["replayed"] is False
    assert answer["wallet"]["available_micros"] == UNIT - 100


def test_one_request_id_is_charged_once(running: Running, customer: Made) -> None:
    request_id = running.name("use")
    first = charged(running, customer, 100, request_id=request_id, model="a")
    again = charged(running, customer, 100, request_id=request_id, model="a")

    assert (again["replayed"], again["charge"]) == (True, first["charge"])
    assert wallet(running, customer)["balance_micros"] == UNIT - 100
    other_key = running.key(customer.key["organization_id"])
    refused(charge(running, customer, 101, request_id=request_id, model="a"), 409, "idempotency_conflict")
    refused(charge(running, customer, 100, request_id=request_id, model="b"), 409, "idempotency_conflict")
    refused(charge(running, other_key, 100, request_id=request_id, model="a"), 409, "idempotency_conflict")
    hold: Json = {"key_id": customer.id, "request_id": request_id, "amount_micros": 100}
    refused(running.root.ask("POST", "/v1/reservations", hold), 409, "idempotency_conflict")


def test_a_request_id_is_an_organizations_own(running: Running, customer: Made) -> None:
    stranger, request_id = running.key(running.organization(UNIT)), running.name("use")

    charged(running, customer, 1, request_id=request_id)
    assert charged(running, stranger, 2, request_id=request_id)["replayed"] is False


def test_a_replay_never_makes_a_revoked_key_valid(running: Running, customer: Made) -> None:
    request_id = running.name("use")
    charged(running, customer, 100, request_id=request_id)
    running.root.post(f"/v1/keys/{customer.id}/revoke")

    refused(charge(running, customer, 100, request_id=request_id), 403, "revoked")


def test_a_refused_charge_may_be_tried_again(running: Running) -> None:
    made, request_id = running.key(running.organization(5)), running.name("use")
    told = refused(charge(running, made, 6, request_id=request_id), 402, "billing_shortfall")
    assert told["refusal"]["remaining"] == 5
    assert wallet(running, made)["balance_micros"] == 5

    running.deposit(made.key["organization_id"], 1)
    assert charged(running, made, 6, request_id=request_id)["replayed"] is False


def test_a_charge_by_secret_looks_in_its_keyspace(running: Running, customer: Made) -> None:
    asked = {"secret": customer.secret, "request_id": running.name("use"), "amount_micros": 1}
    refused(running.root.ask("POST", "/v1/charges", asked), 400, "invalid_request", "keyspace_id")
    asked["keyspace_id"] = running.main
    assert running.root.post("/v1/charges", asked, 201)["charge"]["key_id"] == customer.id

    other = running.keyspace(prefix=running.prefix())
    refused(running.root.ask("POST", "/v1/charges", asked | {"keyspace_id": other}), 403, "malformed")
    stranger = running.key(running.organization(), other).secret
    elsewhere = running.root.ask("POST", "/v1/charges", asked | {"secret": stranger})
    refused(elsewhere, 403, "malformed")
    both = running.root.ask("POST", "/v1/charges", asked | {"key_id": customer.id})
    refused(both, 400, "invalid_request", "key_id")
    nobody = running.root.ask("POST", "/v1/charges", {"request_id": "r", "amount_micros": 1})
    refused(nobody, 400, "invalid_request", "secret")


def test_a_key_that_may_not_is_charged_nothing(running: Running, customer: Made) -> None:
    scopes = {"models": ["a"], "tenants": ["t"]}
    made = running.key(customer.key["organization_id"], scopes=scopes)

    refused(charge(running, made, 1, model="b"), 403, "model_denied")
    refused(charge(running, made, 1, tenant={"user_id": "other"}), 403, "tenant_denied")
    refused(charge(running, made, 1, project_id="prj_x"), 403, "project_denied")
    unknown = {"key_id": "key_" + "0" * 26, "request_id": "r", "amount_micros": 1}
    refused(running.root.ask("POST", "/v1/charges", unknown), 404, "not_found", "key_id")
    assert wallet(running, customer)["balance_micros"] == UNIT


BAD_CHARGES = [
    ({"amount_micros": -1}, "amount_micros"),
    ({"amount_micros": 1.0}, "amount_micros"),
    ({"amount_micros": "1"}, "amount_micros"),
    ({"amount_micros": True}, "amount_micros"),
    ({"amount_micros": None}, "amount_micros"),
    ({"amount_micros": 2**63}, "amount_micros"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": None}, "request_id"),
    ({"tenant": "u1"}, "tenant"),
    ({"tenant": {"name": "x"}}, "tenant.name"),
    ({"price_multiplier": "2"}, "price_multiplier"),
]


@pytest.mark.parametrize("fields,field", BAD_CHARGES)
def test_a_bad_charge_is_named_by_its_field(
    running: Running, customer: Made, fields: Json, field: str
) -> None:
    asked = {"key_id": customer.id, "request_id": running.name("use"), "amount_micros": 1} | fields

    refused(running.root.ask("POST", "/v1/charges", asked), 400, "invalid_request", field)


def test_a_wallet_stays_within_64_bits(running: Running) -> None:
    made = running.key(running.organization())
    path = f"/v1/organizations/{made.key['organization_id']}/wallet"
    running.root.patch(path, {"credit_limit_micros": None})
    # One counter of the usage holds up to 2^62 - 1 an hour: two models are two counters.
    for model in ("a", "b"):
        charged(running, made, MOST // 2, model=model)

    assert wallet(running, made)["balance_micros"] == 1 - MOST
    refused(charge(running, made, MOST), 400, "amount_out_of_range", "amount_micros")
    assert wallet(running, made)["balance_micros"] == 1 - MOST


ROUNDED = [
    ("1.25", 3, 4),
    ("1.5", 1, 2),
    ("0.5", 1, 1),
    ("0.499999", 1, 0),
    ("1.000001", UNIT, UNIT + 1),
    ("0.333333", 3, 1),
    ("0", 1000, 0),
]


@pytest.mark.parametrize("multiplier,base,amount", ROUNDED)
def test_a_plans_multiplier_is_applied_once_and_rounded_half_up(
    running: Running, multiplier: str, base: int, amount: int
) -> None:
    made = running.key(running.organization(2 * UNIT), plan_id=running.plan(price_multiplier=multiplier))
    told = charged(running, made, base)["charge"]

    assert (told["base_micros"], told["price_multiplier"], told["amount_micros"]) == (
        base,
        multiplier,
        amount,
    )
    assert wallet(running, made)["balance_micros"] == 2 * UNIT - amount


@pytest.mark.parametrize("multiplier", ["1.2345678", "-1", "much", "", "1e3", "NaN", 1.5])
def test_a_multiplier_is_a_decimal_string(running: Running, multiplier: Any) -> None:
    asked = {"name": running.name("plan"), "models": "*", "price_multiplier": multiplier}

    refused(running.root.ask("POST", "/v1/plans", asked), 400, "invalid_request", "price_multiplier")


def test_a_plan_limits_models(running: Running) -> None:
    made = running.key(running.organization(UNIT), plan_id=running.plan(["small"]))

    charged(running, made, 1, model="small")
    refused(charge(running, made, 1, model="large"), 403, "model_denied")


def test_a_batch_is_answered_in_order_each_on_its_own(running: Running) -> None:
    made = running.key(running.organization(10))
    items = [
        {"key_id": made.id, "request_id": running.name("use"), "amount_micros": micros}
        for micros in (6, 6, 4, 0)
    ]
    items.append({"key_id": made.id, "request_id": items[0]["request_id"], "amount_micros": 6})
    results = running.root.post("/v1/charges/batch", {"items": items})["results"]

    assert [one.get("code", "charged") for one in results] == [
        "charged",
        "billing_shortfall",
        "charged",
        "charged",
        "charged",
    ]
    assert [one["charge"]["amount_micros"] for one in results if "charge" in one] == [6, 4, 0, 6]
    assert results[4]["replayed"] is True
    assert wallet(running, made)["balance_micros"] == 0
    many = {"items": [items[0]] * 1001}
    refused(running.root.ask("POST", "/v1/charges/batch", many), 400, "invalid_request", "items")


def test_a_bad_item_spoils_only_itself(running: Running, customer: Made) -> None:
    good = {"key_id": customer.id, "request_id": running.name("use"), "amount_micros": 5}
    bad = [good | {"amount_micros": -1}, {"key_id": customer.id}, good | {"nonsense": 1}, "text"]
    results = running.root.post("/v1/charges/batch", {"items": [*bad, good]})["results"]

    assert [one["status"] for one in results] == [400, 400, 400, 400, 201]
    fields = [one["errors"][0]["field"] for one in results[:4]]
    assert fields == ["amount_micros", "request_id", "nonsense", "body"]
    assert wallet(running, customer)["balance_micros"] == UNIT - 5
    asked = {"secret": customer.secret, "keyspace_id": running.main}
    told = running.root.post("/v1/verify/batch", {"items": [asked | {"ip": 7}, asked]})["results"]
    assert [one["code"] for one in told] == ["invalid_request", "valid"]


# -- refunds


def test_a_refund_gives_back_in_part_or_whole_and_no_more(running: Running, customer: Made) -> None:
    told = charged(running, customer, 100)["charge"]
    path, part = f"/v1/charges/{told['id']}/refund", {"request_id": running.name("refund")}
    first = running.root.post(path, part | {"amount_micros": 30}, 201)
    again = running.root.post(path, part | {"amount_micros": 30}, 201)
    assert (first["refund"]["amount_micros"], first["replayed"], again["replayed"]) == (30, False, True)
    assert wallet(running, customer)["balance_micros"] == UNIT - 70
    refused(running.root.ask("POST", path, part | {"amount_micros": 31}), 409, "idempotency_conflict")
    more = {"request_id": running.name("refund"), "amount_micros": 71}
    refused(running.root.ask("POST", path, more), 409, "refund_exceeds_charge")

    rest = running.root.post(path, {"request_id": running.name("refund")}, 201)
    assert rest["refund"]["amount_micros"] == 70
    assert wallet(running, customer)["balance_micros"] == UNIT
    nowhere = f"/v1/charges/chg_{'0' * 26}/refund"
    refused(running.root.ask("POST", nowhere, {"request_id": "r"}), 404, "not_found")


# -- quotas


@pytest.mark.parametrize("level", ["key", "project", "organization"])
@pytest.mark.parametrize("unit", ["micros", "requests"])
def test_a_quota_refuses_at_its_level_and_says_which(running: Running, level: str, unit: str) -> None:
    limit = 100 if unit == "micros" else 1
    quotas = [{"unit": unit, "window": "day", "limit": limit}]
    of: dict[str, Json] = {level: {"quotas": quotas}}
    organization_id = running.organization(UNIT, **of.get("organization", {}))
    project_id = running.project(organization_id, **of.get("project", {}))
    made = running.key(organization_id, **of.get("key", {}))
    first = charged(running, made, 100, project_id=project_id)
    assert [(one["level"], one["remaining"]) for one in first["quotas"]] == [(level, 0)]

    told = refused(charge(running, made, 1, project_id=project_id), 402, QUOTA_CODES[level])
    refusal = told["refusal"]
    assert (refusal["level"], refusal["unit"], refusal["window"]) == (level, unit, "day")
    assert (refusal["limit"], refusal["remaining"]) == (limit, 0)
    assert refusal["resets_at"].endswith("T00:00:00.000000Z")
    assert wallet(running, made)["balance_micros"] == UNIT - 100
    verdict = running.verify(
        made.secret, project_id=project_id, cost_micros=1, request_id=running.name("use")
    )
    assert (verdict["valid"], verdict["code"]) == (False, QUOTA_CODES[level])
    assert verdict["refusal"] == refusal


def test_every_level_is_checked_in_one_decision_and_a_refusal_consumes_nothing(running: Running) -> None:
    month = {"unit": "micros", "window": "month"}
    organization_id = running.organization(UNIT, quotas=[month | {"limit": 50}])
    made = running.key(organization_id, quotas=[month | {"limit": 1000}])
    refused(charge(running, made, 51), 402, "organization_quota_exceeded")

    shown = running.root.get(f"/v1/keys/{made.id}")
    assert shown["quotas"][0]["spent"] == 0
    charged(running, made, 50)
    assert running.root.get(f"/v1/keys/{made.id}")["quotas"][0]["remaining"] == 950
    assert running.root.get(f"/v1/organizations/{organization_id}")["quotas"][0]["remaining"] == 0


def test_a_total_quota_never_resets_and_may_be_raised(running: Running, customer: Made) -> None:
    total = {"unit": "micros", "window": "total"}
    made = running.key(customer.key["organization_id"], quotas=[total | {"limit": 10}])
    charged(running, made, 10)
    assert refused(charge(running, made, 1), 402, QUOTA_CODES["key"])["refusal"]["resets_at"] is None

    running.root.patch(f"/v1/keys/{made.id}", {"quotas": [total | {"limit": 11}]})
    charged(running, made, 1)


def test_a_refund_gives_a_quota_back(running: Running, customer: Made) -> None:
    quotas = [{"unit": "micros", "window": "day", "limit": 10}]
    made = running.key(customer.key["organization_id"], quotas=quotas)
    told = charged(running, made, 10)["charge"]
    running.root.post(f"/v1/charges/{told['id']}/refund", {"request_id": running.name("refund")}, 201)

    charged(running, made, 10)


def test_a_threshold_is_told_once(running: Running, customer: Made) -> None:
    quotas = [{"unit": "micros", "window": "month", "limit": 100, "alert_percents": [50]}]
    organization_id = customer.key["organization_id"]
    made = running.key(organization_id, quotas=quotas)
    for _ in range(3):
        charged(running, made, 30)

    def reached() -> list[Json]:
        query = {"types": "ThresholdReached", "organization_id": organization_id}
        items: list[Json] = running.root.get("/v1/events", **query)["items"]
        return items

    found = until(reached)
    assert len(found) == 1
    assert found[0]["subject"] == made.id


def test_a_wallet_that_runs_low_is_told_once(running: Running, customer: Made) -> None:
    organization_id = customer.key["organization_id"]
    running.root.patch(f"/v1/organizations/{organization_id}/wallet", {"alert_below_micros": UNIT - 50})
    for _ in range(3):
        charged(running, customer, 30)

    page = running.root.get("/v1/events", types="ThresholdReached", organization_id=organization_id)
    assert len(page["items"]) == 1


# -- reservations


def test_a_reservation_holds_and_a_capture_takes(running: Running, customer: Made) -> None:
    answer = reserved(running, customer, 100)
    hold = answer["reservation"]
    assert (hold["status"], hold["held_micros"], answer["replayed"]) == ("open", 100, False)
    now = wallet(running, customer)
    assert (now["balance_micros"], now["reserved_micros"], now["available_micros"]) == (UNIT, 100, UNIT - 100)

    taken = done(capture(running, hold, 60), 201)
    assert (taken["charge"]["amount_micros"], taken["reservation"]["status"]) == (60, "captured")
    after = wallet(running, customer)
    assert (after["balance_micros"], after["reserved_micros"]) == (UNIT - 60, 0)
    shown = running.root.get(f"/v1/reservations/{hold['id']}")["reservation"]
    assert (shown["status"], shown["captured_micros"], shown["held_micros"]) == ("captured", 60, 0)
    refused(capture(running, hold, 1), 409, "reservation_closed")


def test_a_reservation_may_be_captured_often(running: Running, customer: Made) -> None:
    hold = reserved(running, customer, 100)["reservation"]
    first = {"request_id": running.name("capture"), "final": False}
    done(capture(running, hold, 30, **first), 201)
    assert done(capture(running, hold, 30, **first), 201)["replayed"] is True
    assert wallet(running, customer)["reserved_micros"] == 70

    done(capture(running, hold, 20), 201)
    after = wallet(running, customer)
    assert (after["balance_micros"], after["reserved_micros"]) == (UNIT - 50, 0)


def test_beyond_what_is_held_a_capture_takes_what_limits_allow(running: Running) -> None:
    made = running.key(running.organization(100))
    hold = reserved(running, made, 60)["reservation"]
    taken = done(capture(running, hold, 150), 201)

    assert taken["charge"]["amount_micros"] == 100
    assert taken["uncovered_micros"] == taken["charge"]["uncovered_micros"] == 50
    assert taken["reservation"]["uncovered_micros"] == 50
    assert wallet(running, made)["balance_micros"] == 0


def test_what_is_held_is_covered_whatever_became_of_the_key(running: Running, customer: Made) -> None:
    hold = reserved(running, customer, 100)["reservation"]
    running.root.post(f"/v1/keys/{customer.id}/revoke")

    taken = done(capture(running, hold, 150), 201)
    assert (taken["charge"]["amount_micros"], taken["uncovered_micros"]) == (100, 50)


def test_a_release_gives_everything_back(running: Running, customer: Made) -> None:
    hold = reserved(running, customer, 100)["reservation"]
    path = f"/v1/reservations/{hold['id']}/release"
    released = running.root.post(path, {"request_id": running.name("release")})

    assert released["reservation"]["status"] == "released"
    assert wallet(running, customer)["available_micros"] == UNIT
    refused(capture(running, hold, 1), 409, "reservation_closed")
    refused(running.root.ask("GET", f"/v1/reservations/rsv_{'0' * 26}"), 404, "not_found")


def test_a_refused_reservation_says_on_which_state(running: Running) -> None:
    made = running.key(running.organization())
    asked = {"key_id": made.id, "request_id": running.name("hold"), "amount_micros": 1}
    answer = running.root.ask("POST", "/v1/reservations", asked)

    assert refused(answer, 402, "billing_shortfall")["refusal"]["level"] == "wallet"
    assert answer.headers["X-Keyledger-Position"]


def test_a_reservation_expires_by_itself_and_a_late_capture_is_decided_anew(running: Running) -> None:
    made = running.key(running.organization(100))
    rich, poor = (
        reserved(running, made, 50, expires_in_seconds=1)["reservation"],
        reserved(running, made, 50, expires_in_seconds=1)["reservation"],
    )
    until(lambda: wallet(running, made)["reserved_micros"] == 0)
    shown = running.root.get(f"/v1/reservations/{rich['id']}")["reservation"]
    assert shown["status"] == "expired"

    assert done(capture(running, rich, 80), 201)["charge"]["amount_micros"] == 80
    refused(capture(running, poor, 50), 402, "billing_shortfall")
    assert wallet(running, made)["balance_micros"] == 20


def test_money_that_is_held_cannot_be_spent_twice(running: Running) -> None:
    quotas = [{"unit": "micros", "window": "month", "limit": 100}]
    made = running.key(running.organization(UNIT), quotas=quotas)
    reserved(running, made, 80)

    refused(charge(running, made, 21), 402, QUOTA_CODES["key"])
    charged(running, made, 20)


def test_a_reservation_keeps_its_multiplier_and_replays(running: Running) -> None:
    made = running.key(running.organization(UNIT), plan_id=running.plan(price_multiplier="2"))
    request_id = running.name("hold")
    first = reserved(running, made, 50, request_id=request_id)
    assert (first["reservation"]["base_micros"], first["reservation"]["amount_micros"]) == (50, 100)
    again = reserved(running, made, 50, request_id=request_id)
    assert (again["replayed"], again["reservation"]["id"]) == (True, first["reservation"]["id"])
    running.root.patch(f"/v1/keys/{made.id}", {"plan_id": running.plan(price_multiplier="3")})

    taken = done(capture(running, first["reservation"], 50), 201)
    assert (taken["charge"]["price_multiplier"], taken["charge"]["amount_micros"]) == ("2", 100)


def test_a_charge_and_a_reservation_are_one_request_each(running: Running, customer: Made) -> None:
    quotas = [{"unit": "requests", "window": "day", "limit": 2}]
    made = running.key(customer.key["organization_id"], quotas=quotas)
    hold = reserved(running, made, 1)["reservation"]
    done(capture(running, hold, 1), 201)
    charged(running, made, 1)

    refused(charge(running, made, 1), 402, QUOTA_CODES["key"])


# -- verdicts


def test_a_verdict_says_what_the_key_is_and_what_is_left(running: Running) -> None:
    quotas = [{"unit": "micros", "window": "month", "limit": 100}]
    limits = [{"name": "burst", "limit": 5, "window_seconds": 60}]
    made = running.key(
        running.organization(UNIT),
        quotas=quotas,
        rate_limits=limits,
        owner_id="user-1",
        environment="test",
        metadata={"a": 1},
        plan_id=running.plan(),
        expires_at="2099-01-01T00:00:00Z",
    )
    verdict = running.verify(made.secret)

    assert (verdict["valid"], verdict["code"], verdict["key_id"]) == (True, "valid", made.id)
    for name in (
        "organization_id",
        "name",
        "kind",
        "owner_id",
        "environment",
        "plan_id",
        "metadata",
        "scopes",
    ):
        assert verdict[name] == made.key[name], name
    assert verdict["expires_at"] == made.key["expires_at"]
    assert verdict["quotas"][0]["remaining"] == 100
    assert verdict["wallet_available_micros"] == UNIT
    assert verdict["rate_limits"][0]["remaining"] == 4
    assert verdict["position"]


def test_verify_with_a_cost_charges_and_with_reserve_holds(running: Running, customer: Made) -> None:
    use: Json = {"cost_micros": 100, "request_id": running.name("use")}
    verdict = running.verify(customer.secret, **use)
    assert (verdict["valid"], verdict["charge"]["amount_micros"]) == (True, 100)
    assert running.verify(customer.secret, **use)["charge"]["id"] == verdict["charge"]["id"]
    held = running.verify(customer.secret, reserve_micros=50, request_id=running.name("use"))

    assert held["reservation"]["held_micros"] == 50
    assert wallet(running, customer)["available_micros"] == UNIT - 150
    short = running.verify(customer.secret, cost_micros=UNIT, request_id=running.name("use"))
    assert (short["valid"], short["code"]) == (False, "billing_shortfall")
    asked = {"secret": customer.secret, "keyspace_id": running.main, "cost_micros": 1}
    refused(running.root.ask("POST", "/v1/verify", asked), 400, "invalid_request", "request_id")


def test_a_batch_of_questions_is_answered_in_order(running: Running, customer: Made) -> None:
    asked = {"secret": customer.secret, "keyspace_id": running.main}
    items = [asked, asked | {"secret": "nonsense"}, asked | {"model": "x"}]
    results = running.root.post("/v1/verify/batch", {"items": items})["results"]

    assert [one["code"] for one in results] == ["valid", "malformed", "valid"]


BAD_QUESTIONS = [
    ({"secret": None}, "secret"),
    ({"ip": "here"}, "ip"),
    ({"permissions": "read"}, "permissions"),
    ({"cost_micros": -1, "request_id": "r"}, "cost_micros"),
    ({"nonsense": 1}, "nonsense"),
    ({"keyspace_id": None}, "keyspace_id"),
]


@pytest.mark.parametrize("fields,field", BAD_QUESTIONS)
def test_a_bad_question_is_named_by_its_field(
    running: Running, customer: Made, fields: Json, field: str
) -> None:
    asked = {"secret": customer.secret, "keyspace_id": running.main} | fields

    refused(running.root.ask("POST", "/v1/verify", asked), 400, "invalid_request", field)


def test_the_first_reason_wins(running: Running) -> None:
    organization_id = running.organization()
    made = running.key(
        organization_id,
        allowed_ips=["203.0.113.0/24"],
        scopes={"permissions": ["read"], "models": ["a"], "tenants": ["t"]},
        quotas=[{"unit": "micros", "window": "day", "limit": 0}],
    )
    use: Json = {
        "ip": "198.51.100.1",
        "permissions": ["write"],
        "project_id": "prj_x",
        "model": "b",
        "tenant": {"user_id": "u"},
        "cost_micros": 1,
        "request_id": running.name("use"),
    }

    def code() -> str:
        return str(running.verify(made.secret, **use)["code"])

    running.root.post(f"/v1/organizations/{organization_id}/suspend")
    assert code() == "organization_suspended"
    running.root.post(f"/v1/organizations/{organization_id}/resume")
    corrected: list[tuple[str, Json]] = [
        ("ip_denied", {"ip": "203.0.113.1"}),
        ("permission_denied", {"permissions": ["read"]}),
        ("project_denied", {"project_id": running.project(organization_id)}),
        ("model_denied", {"model": "a"}),
        ("tenant_denied", {"tenant": {"user_id": "t"}}),
    ]
    for expected, better in corrected:
        assert code() == expected
        use |= better
    assert code() == "api_key_quota_exceeded"
    running.root.patch(f"/v1/keys/{made.id}", {"quotas": []})
    assert code() == "billing_shortfall"
    running.deposit(organization_id, 1)
    assert code() == "valid"


# -- what became of it


def test_a_request_is_found_by_its_id(running: Running, customer: Made) -> None:
    use, refused_use, hold = running.name("use"), running.name("use"), running.name("hold")
    told = charged(running, customer, 5, request_id=use, model="gpt-5")["charge"]
    refused(charge(running, customer, 2 * UNIT, request_id=refused_use), 402, "billing_shortfall")
    held = reserved(running, customer, 7, request_id=hold)["reservation"]

    assert (running.request(use)[0]["charge_id"], running.request(use)[0]["model"]) == (told["id"], "gpt-5")
    denied = until(lambda: running.root.ask("GET", f"/v1/requests/{refused_use}").body.get("items"))
    assert denied[0]["code"] == "billing_shortfall"
    found = running.request(hold)[0]
    assert (found["reservation_id"], found["status"], found["held_micros"]) == (held["id"], "open", 7)
    refused(running.root.ask("GET", f"/v1/requests/{running.name('never')}"), 404, "not_found")


@pytest.mark.parametrize("name", ["jobs/7/", "/a//b", "a b?c#d%2F", "ünï/✓", "x" * 255])
def test_a_request_id_may_be_anybodys_way_of_naming(running: Running, customer: Made, name: str) -> None:
    charged(running, customer, 5, request_id=name)

    assert running.request(quote(name, safe=""))[0]["request_id"] == name


def test_the_platform_sees_all_matches_or_one_organizations(running: Running, customer: Made) -> None:
    stranger, request_id = running.key(running.organization(UNIT)), running.name("use")
    for made in (customer, stranger):
        charged(running, made, 1, request_id=request_id)

    assert {one["key_id"] for one in running.request(request_id)} == {customer.id, stranger.id}
    path = f"/v1/requests/{request_id}"
    only = running.read(path, organization_id=stranger.key["organization_id"])["items"]
    assert [one["key_id"] for one in only] == [stranger.id]


def test_usage_is_summed_up_by_bucket_and_dimension(running: Running, customer: Made) -> None:
    for model, micros in (("a", 5), ("a", 6), ("b", 7)):
        charged(running, customer, micros, model=model, provider="p", tenant={"user_id": "u"})
    organization_id = customer.key["organization_id"]
    of_key, of_organization = f"/v1/keys/{customer.id}/usage", f"/v1/organizations/{organization_id}/usage"

    for bucket in ("hour", "day", "month"):
        whole = running.read(of_key, bucket=bucket)["items"]
        assert [(one["requests"], one["spent_micros"]) for one in whole] == [(3, 18)]
    by_model = running.read(of_key, by="model")["items"]
    assert {one["model"]: one["spent_micros"] for one in by_model} == {"a": 11, "b": 7}
    for by, name, value in (
        ("provider", "provider", "p"),
        ("tenant", "tenant_user_id", "u"),
        ("key", "key_id", customer.id),
        ("project", "project_id", None),
    ):
        rows = running.read(of_organization, by=by)["items"]
        assert [(one[name], one["requests"]) for one in rows] == [(value, 3)], by
    bad = running.root.ask("GET", f"{of_key}?bucket=year")
    refused(bad, 400, "invalid_request", "bucket")
    refused(running.root.ask("GET", f"{of_key}?by=colour"), 400, "invalid_request", "by")


def test_explain_has_each_rule_with_its_figures_and_takes_nothing(running: Running, customer: Made) -> None:
    organization_id = customer.key["organization_id"]
    quotas = [{"unit": "micros", "window": "day", "limit": 10}]
    made = running.key(organization_id, quotas=quotas, scopes={"models": ["a"]})
    asked = {"key_id": made.id, "model": "b", "cost_micros": 11}
    told = running.root.post("/v1/explain", asked)
    rules = {one["code"]: one for one in told["rules"]}

    assert (told["valid"], told["code"]) == (False, "model_denied")
    assert [rules[one]["outcome"] for one in ("model_denied", "api_key_quota_exceeded")] == ["refuses"] * 2
    assert rules["api_key_quota_exceeded"]["figures"]["quotas"][0]["remaining"] == 10
    assert rules["billing_shortfall"]["outcome"] == "passes"
    assert running.root.get(f"/v1/keys/{made.id}")["quotas"][0]["spent"] == 0
    by_secret = {"secret": made.secret, "keyspace_id": running.main, "model": "a"}
    assert running.root.post("/v1/explain", by_secret)["code"] == "valid"


# -- one's own key


def test_self_says_what_is_left_and_counts_nothing(running: Running) -> None:
    made = running.key(
        running.organization(UNIT),
        quotas=[{"unit": "requests", "window": "day", "limit": 2}],
        rate_limits=[{"name": "slow", "limit": 1, "window_seconds": 3600}],
    )
    holder = running.as_root(made.secret)
    told = [holder.get("/v1/self") for _ in range(3)][-1]

    assert (told["key"]["id"], told["quotas"][0]["remaining"]) == (made.id, 2)
    assert told["wallet_available_micros"] == UNIT
    assert told["rate_limits"][0]["remaining"] == 1
    assert running.verify(made.secret)["valid"]
    answer = running.as_root(None).ask("GET", "/v1/self")
    refused(answer, 401, "missing")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_whoever_holds_a_secret_may_kill_its_key(running: Running, customer: Made) -> None:
    holder = running.as_root(customer.secret)
    answer = holder.post("/v1/self/revoke", {"reason": "found in a log"})

    assert (answer["key"]["status"], answer["fence"]["held"]) == ("revoked", True)
    assert running.verify(customer.secret)["code"] == "revoked"
    refused(holder.ask("GET", "/v1/self"), 401, "revoked")
