"""The position of a verdict has the epoch of the log that its facts are from."""

from __future__ import annotations

import pytest

from keyledger_edge import FillAnswer, RateLimiter, Use, Verifier, VerifyAnswer, VerifyRequest
from tests.edge.test_leased_cache import LINEAGE, Edge, facts_at
from tests.edge.test_welcomes import OWN, WIDE


class Source:
    """A ledger that knows one key, as of position 10 of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        del digest, keyspace_id
        return FillAnswer(facts=facts_at(10), as_of=10, partition=0, epoch=self.epoch, utc=0, lineage=LINEAGE)

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        raise NotImplementedError(request)


def verifier_of(edge: Edge, epoch: int) -> Verifier:
    keyspaces = {WIDE.keyspace_id: WIDE}
    ledger = Source(epoch)
    limiter = RateLimiter(lambda: 0.0)
    return Verifier(edge.cache, keyspaces, limiter=limiter, ledger=ledger, memory=edge.cache)


def told(verifier: Verifier, secret: str, *uses: Use) -> list[str | None]:
    verdicts = [verifier.verify_cached(secret, use) for use in uses or (Use(), Use())]
    return [verdict.position if verdict else None for verdict in verdicts]


@pytest.mark.parametrize("epoch,position", [(1, "0-10"), (2, "0.2-10"), (31, "0.31-10")])
async def test_from_memory_it_is_that_of_the_grant(epoch: int, position: str) -> None:
    edge = Edge().leased(10, epoch=epoch)
    verifier = verifier_of(edge, epoch)
    secret = OWN.generate()

    assert (await verifier.verify(secret)).position == position
    assert told(verifier, secret) == [position, position]
    assert told(verifier, secret, Use(project_id="prj_other")) == [position]


async def test_without_a_lease_it_is_that_of_the_answer() -> None:
    edge = Edge()

    assert (await verifier_of(edge, 2).verify(OWN.generate())).position == "0.2-10"


async def test_nothing_of_the_epoch_before_is_told_after_a_grant_of_the_next() -> None:
    edge = Edge().leased(10, epoch=1)
    secret = OWN.generate()
    assert (await verifier_of(edge, 1).verify(secret)).position == "0-10"

    edge.leased(10, epoch=2)
    verifier = verifier_of(edge, 2)

    assert told(verifier, secret) == [None, None]
    assert (await verifier.verify(secret)).position == "0.2-10"
    assert told(verifier, secret) == ["0.2-10", "0.2-10"]
