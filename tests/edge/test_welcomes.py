"""The short path through a check: a valid key takes it until something that it depends on changes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from keyledger_edge import (
    AcceptedFormat,
    Change,
    FillAnswer,
    KeyspaceView,
    RateLimit,
    RateLimiter,
    Scopes,
    SecretFormat,
    SecretShape,
    UnknownKeyspaceError,
    Use,
    Verdict,
    Verifier,
    fingerprint,
)
from tests.edge.test_leased_cache import LINEAGE, MS, Edge, facts_at

OWN = SecretShape(prefix="kl_", format=SecretFormat(checksum="crc32"))
IMPORTED = AcceptedFormat(prefix="old_", min_length=30, max_length=600)
WIDE = KeyspaceView(
    keyspace_id="ks_1", shape=SecretShape(prefix="kl_", format=OWN.format, accepted=(IMPORTED,))
)
NARROW = replace(WIDE, shape=OWN)


class Gateway:
    """A leased edge with a verifier, and known secrets."""

    def __init__(self, *keyspaces: KeyspaceView) -> None:
        self.edge = Edge().leased()
        self.keyspaces = {one.keyspace_id: one for one in keyspaces or (WIDE,)}
        cache = self.edge.cache
        self.verifier = Verifier(cache, self.keyspaces, limiter=RateLimiter(lambda: 0.0), memory=cache)

    def knows(self, secret: str, **fields: Any) -> str:
        facts = replace(facts_at(10), **fields)
        answer = FillAnswer(facts=facts, as_of=10, partition=0, epoch=0, utc=0, lineage=LINEAGE)
        assert self.edge.cache.filled(fingerprint(secret), answer)
        return secret

    def code(self, secret: str, use: Use | None = None, keyspace_id: str | None = None) -> str | None:
        verify = self.verifier.verify_cached
        verdict = verify(secret, keyspace_id=keyspace_id) if use is None else verify(secret, use, keyspace_id)
        return verdict.code if verdict else None


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def good(gateway: Gateway) -> str:
    secret = gateway.knows(OWN.generate())
    assert [gateway.code(secret) for _ in range(3)] == ["valid"] * 3
    return secret


def test_the_verdict_on_a_good_key_is_the_same_object_each_time(gateway: Gateway, good: str) -> None:
    first, second = (gateway.verifier.verify_cached(good) for _ in range(2))

    assert isinstance(first, Verdict)
    assert first is second
    assert first.facts is not None
    assert first.facts.key_id == "key_1"
    assert gateway.edge.cache.hits == 5


def test_who_is_revoked_is_welcome_no_more(gateway: Gateway, good: str) -> None:
    gateway.edge.hear(10, 11, Change(11, "key", "key_1", (fingerprint(good),)))

    assert gateway.code(good) is None


@pytest.mark.parametrize("kind,name", [("plan", "plan_1"), ("organization", "org_1"), ("keyspace", "ks_1")])
def test_what_many_keys_share_makes_all_of_them_be_looked_at_again(
    gateway: Gateway, good: str, kind: Any, name: str
) -> None:
    other = gateway.knows(OWN.generate(), plan_id="plan_2", organization_id="org_2", keyspace_id="ks_1")
    assert gateway.code(other) == "valid"

    gateway.edge.hear(10, 11, Change(11, kind, name, ()))

    assert gateway.code(good) is None
    assert gateway.code(other) == (None if kind == "keyspace" else "valid")


def test_nobody_is_welcome_without_a_lease(gateway: Gateway, good: str) -> None:
    gateway.edge.clock.ns += 1000 * MS - 1
    assert gateway.code(good) == "valid"

    gateway.edge.clock.ns += 1
    assert gateway.code(good) is None

    gateway.edge.leased()
    assert gateway.code(good) == "valid"

    gateway.edge.cache.leave()
    assert gateway.code(good) is None


def test_a_shape_that_is_not_accepted_any_more_is_malformed_though_its_key_is_known(gateway: Gateway) -> None:
    imported = gateway.knows("old_" + "x" * 30)
    assert [gateway.code(imported) for _ in range(2)] == ["valid", "valid"]

    gateway.keyspaces["ks_1"] = NARROW
    gateway.verifier.forget_keyspaces()

    assert gateway.code(imported) == "malformed"


def test_a_secret_of_any_length_that_its_keyspace_accepts_is_good(gateway: Gateway) -> None:
    for length in (508, 509, 600):
        secret = gateway.knows("old_" + "x" * length)
        assert [gateway.code(secret) for _ in range(2)] == ["valid", "valid"]
    assert gateway.code("old_" + "x" * 601) == "malformed"


def test_text_that_no_secret_is_made_of_is_malformed(gateway: Gateway) -> None:
    for text in ("\udc80", "ä" * 40, "kl_" + "\udc80" * 36, "x" * 100_000, "\udc80" * 1_000):
        assert gateway.code(text) == "malformed"
    assert gateway.code("") == "missing"


def test_every_use_is_judged(gateway: Gateway) -> None:
    secret = gateway.knows(OWN.generate(), scopes=Scopes(models=("small",)))

    said = [gateway.code(secret, use) for use in (None, Use(model="small"), Use(model="large"), Use())]

    assert said == ["valid", "valid", "model_denied", "valid"]


def test_a_key_that_time_or_counting_can_make_bad_is_never_waved_through(gateway: Gateway) -> None:
    now = gateway.edge.cache.now_utc()
    short = gateway.knows(OWN.generate(), expires_at=now + 500_000)
    limits = (RateLimit(name="minute", limit=2, window_seconds=60),)
    limited = gateway.knows(OWN.generate(), rate_limits=limits)
    assert [gateway.code(short), gateway.code(short)] == ["valid", "valid"]

    gateway.edge.clock.ns += 500 * MS

    assert gateway.code(short) == "expired"
    assert [gateway.code(limited) for _ in range(3)] == ["valid", "valid", "rate_limited"]


def test_a_welcome_holds_in_its_own_keyspace_only() -> None:
    other = KeyspaceView(keyspace_id="ks_2", shape=OWN)
    gateway = Gateway(WIDE, other)
    secret = gateway.knows(OWN.generate())

    said = [gateway.code(secret, keyspace_id=one) for one in ("ks_1", "ks_1", "ks_2", "ks_1")]

    assert said == ["valid", "valid", "not_found", "valid"]
    with pytest.raises(UnknownKeyspaceError):
        gateway.code(secret)
    with pytest.raises(UnknownKeyspaceError):
        gateway.code(secret, keyspace_id="ks_3")


def test_a_keyspace_that_is_gone_is_unknown(gateway: Gateway, good: str) -> None:
    del gateway.keyspaces["ks_1"]
    gateway.verifier.forget_keyspaces()

    with pytest.raises(UnknownKeyspaceError):
        gateway.code(good, keyspace_id="ks_1")
