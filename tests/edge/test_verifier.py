"""The verifier: its verdicts, its requests, and which look-ups it shares."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyledger_edge import (
    UNKNOWN,
    FillAnswer,
    KeyFacts,
    KeyspaceView,
    LedgerUnreachableError,
    NotConnectedError,
    RateLimit,
    RateLimiter,
    Scopes,
    SecretFormat,
    SecretShape,
    UnknownKeyspaceError,
    Use,
    Verifier,
)
from keyledger_edge.testing import FakeLedger


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def code(verifier: Verifier, secret: str, use: Use | None = None) -> str | None:
    verdict = verifier.verify_cached(secret, use) if use else verifier.verify_cached(secret)
    return verdict.code if verdict else None


def test_a_good_key_is_valid_and_known(ledger: FakeLedger) -> None:
    secret = ledger.add_key(key_id="key_7", organization_id="org_7", plan_id="plan_7")
    verdict = ledger.verifier().verify_cached(secret)

    assert verdict is not None
    assert verdict.valid
    assert (verdict.key_id, verdict.organization_id, verdict.plan_id) == ("key_7", "org_7", "plan_7")
    assert verdict.position == "0-0"


def test_what_is_no_key_is_never_looked_up(ledger: FakeLedger) -> None:
    verifier = ledger.verifier()
    good = ledger.add_key()
    ledger.reachable = False

    assert code(verifier, "") == "missing"
    assert code(verifier, "nonsense") == "malformed"
    assert code(verifier, good[:-1]) == "malformed"
    assert code(verifier, good[:-1] + ("a" if good[-1] != "a" else "b")) == "malformed"
    assert code(verifier, "kl_test_" + "ä" * 36) == "malformed"
    assert code(verifier, "\udc80") == "malformed"


def test_in_two_halves_it_says_the_same(ledger: FakeLedger) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    good, fast = ledger.add_key(), ledger.add_key(rate_limits=limits)
    verifier, keyspace = ledger.verifier(), ledger.keyspace

    def halves(secret: str, *, counts: bool = True) -> str | None:
        found = verifier.find(secret, keyspace)
        verdict = verifier.judge(found, Use(), counts=counts) if isinstance(found, KeyFacts) else found
        return verdict.code if verdict else None

    assert [halves(one) for one in ("", "nonsense", keyspace.shape.generate(), good)] == [
        "missing",
        "malformed",
        "not_found",
        "valid",
    ]
    assert [halves(fast), halves(fast), halves(fast, counts=False)] == ["valid", "rate_limited", "valid"]

    ledger.reachable = False

    assert halves(good) is None


def test_a_well_formed_stranger_is_not_found(ledger: FakeLedger) -> None:
    assert code(ledger.verifier(), ledger.keyspace.shape.generate()) == "not_found"


def test_a_key_of_another_keyspace_is_not_found(ledger: FakeLedger) -> None:
    secret = ledger.add_key(keyspace_id="ks_other")

    assert code(ledger.verifier(), secret) == "not_found"


DENIALS: dict[str, dict[str, Any]] = {
    "revoked": {"revoked": True},
    "expired": {"expires_at": 1},
    "rotated": {"secret_ends_at": 1},
    "disabled": {"disabled": True},
    "organization_suspended": {"organization_suspended": True},
    "ip_denied": {"allowed_ips": ("10.0.0.0/8",)},
    "permission_denied": {"scopes": Scopes(permissions=("write",))},
    "project_denied": {"projects": frozenset({"prj_2"})},
    "model_denied": {"plan_models": ("large",), "projects": frozenset({"prj_1"})},
}


@pytest.mark.parametrize("expected", DENIALS)
def test_a_refusal_says_why(ledger: FakeLedger, expected: str) -> None:
    secret = ledger.add_key(**DENIALS[expected])
    use = Use(permissions=("read",), project_id="prj_1", model="small", ip="192.0.2.1")

    assert code(ledger.verifier(), secret, use) == expected


def test_the_first_reason_wins(ledger: FakeLedger) -> None:
    facts: dict[str, Any] = {}
    for expected in reversed(DENIALS):
        facts |= DENIALS[expected]
        secret = ledger.add_key(**facts)
        use = Use(permissions=("read",), project_id="prj_1", model="small", ip="192.0.2.1")

        assert code(ledger.verifier(), secret, use) == expected


def test_rate_limits_are_counted_and_shown(ledger: FakeLedger) -> None:
    secret = ledger.add_key(rate_limits=(RateLimit(name="minute", limit=2, window_seconds=60),))
    verifier = ledger.verifier()
    verdicts = [verifier.verify_cached(secret) for _ in range(3)]

    assert [one.code for one in verdicts if one] == ["valid", "valid", "rate_limited"]
    assert [one.rate_limits[0].remaining for one in verdicts if one] == [1, 0, 0]


def test_a_refused_use_counts_against_no_rate_limit(ledger: FakeLedger) -> None:
    limits = (RateLimit(name="minute", limit=1, window_seconds=60),)
    secret = ledger.add_key(rate_limits=limits, scopes=Scopes(models=("small",)))
    verifier = ledger.verifier()

    assert code(verifier, secret, Use(model="large")) == "model_denied"
    assert code(verifier, secret, Use(model="small")) == "valid"


async def test_without_lease_and_ledger_nobody_can_tell(ledger: FakeLedger) -> None:
    secret = ledger.add_key()
    verifier = ledger.verifier()
    ledger.reachable = False

    assert verifier.verify_cached(secret) is None
    assert (await verifier.verify(secret)).code == "ledger_unreachable"
    assert (await verifier.verify(secret, cost_micros=5)).code == "ledger_unreachable"


async def test_a_cost_is_charged_by_the_ledger_once_per_request_id(ledger: FakeLedger) -> None:
    secret = ledger.add_key()
    verifier = ledger.verifier()
    for _ in range(2):
        verdict = await verifier.verify(secret, cost_micros=5, request_id="r1")

        assert verdict.valid
        assert verdict.key_id is not None

    assert ledger.charges == {"r1": 5}


async def test_a_balance_is_the_ledgers_to_know(ledger: FakeLedger) -> None:
    secret = ledger.add_key(require_balance=True)
    verifier = ledger.verifier()

    assert verifier.verify_cached(secret) is None
    assert (await verifier.verify(secret)).valid

    ledger.revoke(secret)

    assert code(verifier, secret) == "revoked"


def test_a_keyspace_must_be_named_where_there_are_several(ledger: FakeLedger) -> None:
    other = KeyspaceView(keyspace_id="ks_other", shape=SecretShape(prefix="o_", format=SecretFormat()))
    keyspaces = {ledger.keyspace.keyspace_id: ledger.keyspace, "ks_other": other}
    verifier = Verifier(ledger, keyspaces, limiter=RateLimiter(lambda: 0.0))
    secret = ledger.add_key()

    assert verifier.verify_cached(secret, keyspace_id="ks_test") is not None
    with pytest.raises(UnknownKeyspaceError):
        verifier.verify_cached(secret)
    with pytest.raises(UnknownKeyspaceError):
        verifier.verify_cached(secret, keyspace_id="ks_none")


class SlowLedger(FakeLedger):
    """Answers when a test says so, with what was true at the time of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.leased = False
        self.asked: list[asyncio.Future[None]] = []

    @property
    def has_lease(self) -> bool:
        return self.leased

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        answer = await FakeLedger.fill(self, digest, keyspace_id)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(waiting)
        await waiting
        return answer

    def verifier(self) -> Verifier:
        verifier = super().verifier()
        verifier._facts_of = lambda _digest: UNKNOWN
        return verifier


async def _soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_uses_that_arrive_together_share_one_look_up() -> None:
    ledger = SlowLedger()
    ledger.leased = True
    secret, verifier = ledger.add_key(), ledger.verifier()
    uses = [asyncio.create_task(verifier.verify(secret)) for _ in range(10)]
    await _soon()
    ledger.asked[0].set_result(None)
    verdicts = await asyncio.gather(*uses)

    assert len(ledger.asked) == 1
    assert all(one.valid for one in verdicts)


async def test_without_a_lease_a_use_joins_no_look_up_from_before_it_arrived() -> None:
    ledger = SlowLedger()
    secret, verifier = ledger.add_key(), ledger.verifier()
    early = asyncio.create_task(verifier.verify(secret))
    await _soon()
    ledger.revoke(secret)
    late = asyncio.create_task(verifier.verify(secret))
    await _soon()
    ledger.asked[0].set_result(None)
    await _soon()
    ledger.asked[1].set_result(None)

    assert (await early).code == "valid"
    assert (await late).code == "revoked"


async def test_a_look_up_that_nobody_waits_for_any_more_harms_nobody() -> None:
    ledger = SlowLedger()
    ledger.leased = True
    secret, verifier = ledger.add_key(), ledger.verifier()
    impatient = asyncio.create_task(verifier.verify(secret))
    patient = asyncio.create_task(verifier.verify(secret))
    await _soon()
    impatient.cancel()
    ledger.asked[0].set_result(None)

    assert (await patient).valid


async def test_a_look_up_that_fails_fails_those_who_shared_it_and_nobody_later() -> None:
    ledger = SlowLedger()
    ledger.leased = True
    secret, verifier = ledger.add_key(), ledger.verifier()
    first = asyncio.create_task(verifier.verify(secret))
    await _soon()
    ledger.asked[0].set_exception(LedgerUnreachableError())

    assert (await first).code == "ledger_unreachable"

    second = asyncio.create_task(verifier.verify(secret))
    await _soon()
    ledger.asked[1].set_result(None)

    assert (await second).valid


async def test_another_thread_asks_through_the_loop(ledger: FakeLedger) -> None:
    secret = ledger.add_key()
    verifier = ledger.verifier()
    with pytest.raises(NotConnectedError):
        verifier.verify_blocking(secret)

    verifier._loop = asyncio.get_running_loop()
    verdict = await asyncio.to_thread(verifier.verify_blocking, secret)

    assert verdict.valid


def test_a_verdict_reads_as_json_without_a_secret(ledger: FakeLedger) -> None:
    secret = ledger.add_key(name="mine", expires_at=4_102_444_800_000_000)
    verdict = ledger.verifier().verify_cached(secret)
    assert verdict is not None
    answer = verdict.as_answer()

    assert (answer.valid, answer.code, answer.name) == (True, "valid", "mine")
    assert answer.expires_at == "2100-01-01T00:00:00.000000Z"
    assert secret not in repr(answer)
    assert secret not in repr(verdict)


async def test_an_edge_that_has_not_reached_its_ledger_yet_can_tell_nothing() -> None:
    verifier = Verifier.at("http://127.0.0.1:9", "kl_root_x")
    secret = "kl_test_x"

    assert (await verifier.verify(secret)).code == "ledger_unreachable"
    assert (await verifier.verify(secret, cost_micros=5, request_id="r")).code == "ledger_unreachable"
    assert (await verifier.verify(secret, keyspace_id="ks_1")).code == "ledger_unreachable"
