"""An edge in a process of its own that verifies as fast as it can, and books what it accepted."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path

import msgspec

from keyledger_edge import NO_USE, EdgeError, Grant, Use, Verifier, boottime_ns
from keyledger_edge._leased_cache import LeasedCache
from services.cli.running import end_with
from tests.campaigns.edges.book import Book, Control, Figure, Plan, Slot

_PAUSE_SECONDS = 0.004
_IDLE_SECONDS = 0.05
_MORE_ROUNDS = 4
_MOST_ASKING = 32


class Edge:
    """Goes round the window of slots; what memory cannot tell is asked beside that."""

    def __init__(self, plan: Plan) -> None:
        self._book = Book(Path(plan.book), len(plan.slots))
        self._control = Control(Path(plan.control))
        self._secrets = [slot.secret for slot in plan.slots]
        self._uses = [_use(slot) for slot in plan.slots]
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._verifier = Verifier.at(
            plan.url, plan.key, keyspace_ids=(plan.keyspace_id,), capacity=plan.capacity,
            serve_stale_ms=plan.serve_stale_ms,
        )  # fmt: skip

    async def run(self) -> None:
        await self._connect()
        while not self._control.stopping:
            first, last = self._control.window
            told = self._go_round(first, last)
            for _ in range(_MORE_ROUNDS if told == last - first else 0):
                self._go_round(first, last)
            self._book.figures[Figure.READY] = self._verifier.ready
            # Without a lease there is nothing to be told at once, and the ledger needs the processor.
            await asyncio.sleep(_PAUSE_SECONDS if told else _IDLE_SECONDS)
        for task in self._asking.values():
            task.cancel()
        await self._verifier.close()

    async def _connect(self) -> None:
        self._verifier.start()
        while not self._verifier.keyspaces and not self._control.stopping:
            await asyncio.sleep(0.02)

    def _go_round(self, first: int, last: int) -> int:
        secrets, uses, asking = self._secrets, self._uses, self._asking
        arrivals, as_of = self._book.arrivals, self._book.as_of
        verify, clock = self._verifier.verify_cached, boottime_ns
        told = accepts = 0
        for slot in range(first, last):
            if slot in asking:
                continue
            # Before it is asked: what is accepted must have been good at a moment after this one.
            arrived = clock()
            verdict = verify(secrets[slot], uses[slot])
            if verdict is None:
                if len(asking) < _MOST_ASKING:
                    asking[slot] = asyncio.create_task(self._ask(slot))
                continue
            told += 1
            if verdict.code == "valid":
                arrivals[slot] = arrived
                assert verdict.facts is not None
                as_of[slot] = verdict.facts.as_of
                accepts += 1
        figures = self._book.figures
        figures[Figure.VERIFICATIONS] += told
        figures[Figure.FROM_MEMORY] += told
        figures[Figure.ACCEPTS] += accepts
        return told

    async def _ask(self, slot: int) -> None:
        book = self._book
        try:
            arrived = boottime_ns()
            verdict = await self._verifier.verify(self._secrets[slot], self._uses[slot])
            took = boottime_ns() - arrived
        except EdgeError as error:
            print(f"edge: {type(error).__name__}: {error}", file=sys.stderr)
            return
        finally:
            self._asking.pop(slot, None)
        book.figures[Figure.VERIFICATIONS] += 1
        book.figures[Figure.SLOWEST_NS] = max(took, book.figures[Figure.SLOWEST_NS])
        if verdict.code == "ledger_unreachable":
            book.figures[Figure.UNREACHABLE] += 1
        if verdict.valid:
            book.figures[Figure.ACCEPTS] += 1
            book.arrivals[slot] = max(arrived, book.arrivals[slot])
            assert verdict.facts is not None
            book.as_of[slot] = verdict.facts.as_of


def _use(slot: Slot) -> Use:
    if slot.permission is slot.project_id is slot.model is None:
        return NO_USE
    permissions = (slot.permission,) if slot.permission else ()
    return Use(permissions=permissions, project_id=slot.project_id, model=slot.model)


def _mutate(mutant: str) -> None:
    """Break a rule of the fence: the campaign's checker must notice."""
    if mutant == "acknowledge without applying":
        setattr(LeasedCache, "_apply", lambda _cache, _change: None)  # noqa: B010 - that is the mutation
    elif mutant == "a lease that never ends":
        extend = LeasedCache._extend

        def forever(cache: LeasedCache, grant: Grant, sent: int) -> None:
            extend(cache, grant, sent)
            cache.lease.ends = sent + 3_600_000_000_000

        setattr(LeasedCache, "_extend", forever)  # noqa: B010 - that is the mutation


def main() -> None:
    """The plan stands on the standard input."""
    end_with(os.getppid())
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    _mutate(plan.mutant)
    # The edges spin; ledger and NATS must get through beside them on a small machine.
    os.nice(5)
    gc.freeze()
    asyncio.run(Edge(plan).run())


if __name__ == "__main__":
    main()
