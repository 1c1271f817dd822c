"""Every pair of take-aways, the first one's fence held open: no edge accepts after the second's answer.

The real ledger behind its HTTP API, the real memory and verifier of an edge, on virtual time. The
edge remembers the key and is cut off; the first take-away does not wait, or its caller has gone;
some charges go by; the second is answered: whatever it says, that edge may accept no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import services.ledger.tenure
from keyledger_edge._views import KeyspaceViews
from tests.api.quick.world import Reply
from tests.simulation.mutants import HeldForAFenceNotFound
from tests.take_aways.stage import STALE_MS, TERMS, Stage, play, staged
from tests.take_aways.table import FIRSTS, IMPOSSIBLE, SECONDS, TAKE_AWAYS, Target

CHARGES = (0, 1, 31, 33, 100)
STALE = (0, STALE_MS)
_BOUND_NS = TERMS.booked_ns(STALE_MS) + 10_000_000


async def check(stage: Stage, target: Target, first: str, reply: Reply, began: int) -> str | None:
    """What is wrong with an answer, if anything."""
    if stage.edge.accepts(target, first) or await stage.edge.accepts_once_it_asked(target, first):
        return f"the edge accepts after {reply.status} {reply.body[-200:]!r}"
    fence = reply.json.get("fence")
    if reply.status < 300 and not (reply.status != 202 and fence and fence["held"]):
        return f"answered {reply.status} with {fence}"
    if reply.status not in {200, 201, 404, 409}:
        return f"answered {reply.status} {reply.body!r}"
    if stage.loop.ns - began > _BOUND_NS:
        return f"answered after {(stage.loop.ns - began) / 1e6:.0f} ms"
    return None


async def row(first: str) -> tuple[int, list[str], Counter[int]]:
    """One kind first, all kinds second, all numbers of charges between them, without and with serve_stale."""
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    seconds = [second for second in SECONDS if (first, second) not in IMPOSSIBLE]
    cases = [(second, charges) for second in seconds for charges in CHARGES]
    async with staged() as stage:
        for serve_stale_ms in STALE:
            targets = await stage.targets([(first, second) for second, _ in cases])
            await stage.charges(1)
            await stage.new_edge(serve_stale_ms)
            for (second, charges), target in zip(cases, targets, strict=True):
                await stage.cut_off_after_filling(target)
                began = stage.loop.ns
                await taken_but_open(stage, first, target)
                await stage.charges(charges)
                reply = await stage.take_away(second, target)
                statuses[reply.status] += 1
                what = f"{first}, {charges} charges, {second}, serve_stale {serve_stale_ms} ms"
                if (problem := await check(stage, target, first, reply, began)) is not None:
                    wrong.append(f"{what}: {problem}")
                    await asyncio.sleep(3)
    return len(cases) * len(STALE), wrong, statuses


async def taken_but_open(stage: Stage, first: str, target: Target) -> None:
    """The first take-away, without waiting: its fence is open, and the edge does accept."""
    answered = await stage.take_away(first, target, wait=False)
    assert (answered.status, stage.world.ledger.fences.open_fences) == (202, 1), answered.body
    assert stage.edge.accepts(target, first), "the edge was cut off"


@pytest.mark.parametrize("first", FIRSTS)
def test_after_the_second_no_edge_accepts_what_the_first_took_away(first: str) -> None:
    count, wrong, statuses = play(row(first))
    print(f"{first}: {count} cases, {len(wrong)} wrong, {dict(statuses)}")

    assert wrong == []


def test_the_matrix_has_every_pair_or_says_why_not() -> None:
    pairs = {(first, second) for first in FIRSTS for second in SECONDS if (first, second) not in IMPOSSIBLE}
    print(
        f"{len(pairs) * len(CHARGES) * len(STALE)} cases of {len(pairs)} pairs; {len(IMPOSSIBLE)} cannot be"
    )

    assert pairs | IMPOSSIBLE.keys() == {(first, second) for first in TAKE_AWAYS for second in TAKE_AWAYS}
    assert pairs.isdisjoint(IMPOSSIBLE)
    assert all(IMPOSSIBLE.values())


def test_the_matrix_notices_a_fence_that_is_held_because_it_was_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services.ledger.tenure, "FenceKeeper", HeldForAFenceNotFound)
    _, wrong, _ = play(row("revoke"))

    assert len(wrong) > 100


@pytest.mark.parametrize("first", [name for name in FIRSTS if TAKE_AWAYS[name].view])
def test_the_matrix_notices_an_edge_that_judges_by_what_a_keyspace_was(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyspaceViews, "are_current", lambda *_: True)
    monkeypatch.setattr(KeyspaceViews, "may_be_used", lambda *_: True)
    _, wrong, _ = play(row(first))

    assert len(wrong) > 100


# -- replays, and what only grants


async def replayed(name: str, *, found_nothing: bool) -> tuple[bool, Reply, bool]:
    """Ask twice under one Idempotency-Key; was it a replay, what did it say, does the edge accept then?"""
    async with staged() as stage:
        [target] = await stage.targets([(name, name)])
        await stage.new_edge(0)
        await stage.cut_off_after_filling(target)
        if found_nothing:
            await taken_but_open(stage, name, target)
        before = await stage.take_away(name, target, wait=False, idempotency_key="once")
        assert before.status == 202
        again = await stage.take_away(name, target, wait=True, idempotency_key="once")
        is_replay = again.headers.get("idempotent-replayed") == "true"
        return is_replay, again, stage.edge.accepts(target, name)


@pytest.mark.parametrize("name", [name for name in FIRSTS if not TAKE_AWAYS[name].by_holder])
def test_a_replay_waits_for_the_fence_too(name: str) -> None:
    is_replay, reply, accepts = play(replayed(name, found_nothing=False))

    assert (is_replay, reply.status in {200, 201}, accepts) == (True, True, False)
    assert reply.json["fence"]["held"] is True


@pytest.mark.parametrize(
    "name",
    ["revoke", "disable", "revoke by ids", "leak", "scopes", "addresses", "keyspace", "suspend", "archive"],
)
def test_a_replay_of_one_that_found_nothing_waits_for_what_is_open(name: str) -> None:
    is_replay, reply, accepts = play(replayed(name, found_nothing=True))

    assert (is_replay, reply.status, accepts) == (True, 200, False)
    assert reply.json["fence"]["held"] is True


GRANTS: dict[str, tuple[str, str, Any]] = {
    "enable": ("POST", "/v1/keys/{key_id}/enable", {}),
    "wider scopes": ("PATCH", "/v1/keys/{key_id}/scopes", {"models": "*"}),
    "no end": ("PATCH", "/v1/keys/{key_id}", {"expires_at": None}),
    "rename": ("PATCH", "/v1/keys/{key_id}", {"name": "another"}),
    "resume": ("POST", "/v1/organizations/{organization_id}/resume", {}),
    "rename the organization": ("PATCH", "/v1/organizations/{organization_id}", {"name": "another"}),
    "higher quotas": (
        "PATCH", "/v1/organizations/{organization_id}",
        {"quotas": [{"unit": "requests", "window": "day", "limit": 10}]},
    ),
    "no credit limit": ("PATCH", "/v1/organizations/{organization_id}/wallet", {"credit_limit_micros": None}),
    "a plan's price": ("PATCH", "/v1/plans/{plan_id}", {"price_multiplier": "2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GRANTS)
def test_what_only_grants_waits_for_nobody(name: str) -> None:
    method, path, body = GRANTS[name]

    async def ask() -> tuple[Reply, int]:
        async with staged() as stage:
            other, target = await stage.targets([("revoke", "revoke")] * 2)
            if name == "higher quotas":
                await stage.take_away("quotas of the organization", target)
            await stage.new_edge(0)
            await stage.cut_off_after_filling(other)
            await taken_but_open(stage, "revoke", other)
            began = stage.loop.ns
            where = path.format(
                key_id=target.key_id, organization_id=target.organization_id, plan_id=target.plan_id
            )
            return await stage.world.ask(method, where, body), stage.loop.ns - began

    reply, waited = play(ask())

    assert (reply.status, "fence" in reply.json) == (200, False), reply.body
    assert waited < 1_000_000


def test_a_wider_scope_waits_for_what_was_just_taken_away_from_the_same_key() -> None:
    async def ask() -> tuple[Reply, bool]:
        async with staged() as stage:
            [target] = await stage.targets([("scopes", "scopes")])
            await stage.new_edge(0)
            await stage.cut_off_after_filling(target)
            await taken_but_open(stage, "scopes", target)
            reply = await stage.world.patch(f"/v1/keys/{target.key_id}/scopes", {"models": ["b", "c"]})
            return reply, stage.edge.accepts(target, "scopes")

    reply, accepts = play(ask())

    assert (reply.status, reply.json["fence"]["held"], accepts) == (200, True, False)


@pytest.mark.parametrize("name", SECONDS)
def test_without_waiting_it_says_that_the_fence_is_open(name: str) -> None:
    async def ask() -> Reply:
        async with staged() as stage:
            first = "archive" if name == "archive" else "scopes"
            [target] = await stage.targets([(first, name)])
            await stage.new_edge(0)
            await stage.cut_off_after_filling(target)
            await taken_but_open(stage, first, target)
            return await stage.take_away(name, target, wait=False)

    reply = play(ask())

    assert (reply.status, reply.json["fence"]["held"]) == (202, False)


def test_a_fence_is_held_once_all_up_to_it_are() -> None:
    async def ask() -> list[bool]:
        async with staged() as stage:
            [target] = await stage.targets([("revoke", "revoke")])
            await stage.new_edge(0)
            await stage.cut_off_after_filling(target)
            before = stage.world.ledger.books.head
            revoked = await stage.take_away("revoke", target, wait=False)
            await stage.charges(40)
            after = stage.world.ledger.books.head
            told = [await stage.world.get(f"/v1/fences/0-{position}") for position in (before, after)]
            waited = await stage.world.get(f"/v1/fences/{revoked.json['fence']['position']}?wait=true")
            held = await stage.world.get(f"/v1/fences/0-{after}")
            return [one.json["held"] for one in (*told, waited, held)]

    assert play(ask()) == [True, False, True, True]
