"""One time of owning the partition, from the take-over to the loss: which edges may still accept what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from domain.changes import change_of
from domain.commands import RecordFence
from domain.desk import SYSTEM_ASKING
from keyledger_language import Change
from services.ledger.bus import Bus
from services.ledger.edge_rights import may_connect, root_keys_with_edges
from services.ledger.errors import CannotAnswerError
from services.ledger.fence import FenceKeeper
from services.ledger.fence_results import FenceReceipt
from services.ledger.memory import LedgerMemory
from services.ledger.ports import Ports, Terms

log = structlog.get_logger()

_CHANGES_TOLD = 2_000


class Tenure:
    """A new object each time that this process becomes the owner: nothing in it outlives the loss."""

    def __init__(
        self,
        name: str,
        ports: Ports,
        terms: Terms,
        memory: LedgerMemory,
        *,
        master_key: bytes,
    ) -> None:
        state, now = memory.state, ports.clock.now
        self.name = name
        """The name by which other processes know it: another one each time; empty: none began yet."""
        self.fences = FenceKeeper(
            ports.fence_clock,
            terms=terms.lease,
            partition=ports.log.partition,
            epoch=memory.epoch,
            head=state.head,
            mark=state.mark,
            master_key=master_key,
            publish=ports.publish_change,
            record_receipt=self._receipt,
            may_connect=lambda root_key_id: may_connect(state, root_key_id, now()),
            expects=root_keys_with_edges(state, now()),
            on_newcomer=ports.listen_to_edges,
            bounds=terms.edges,
        )
        self._ports = ports
        self._memory = memory
        self._boottime_ns: Callable[[], int] = ports.fence_clock.boottime_ns
        self._receipts: list[FenceReceipt] = []
        self._woken = asyncio.Event()

    async def resume(self) -> None:
        """Continue fences without a receipt, however old; load the latest changes, for grants to edges."""
        state = self._memory.state
        after = max(0, state.head - _CHANGES_TOLD)
        changes: list[Change] = []
        read = await self._ports.log.read(after, _CHANGES_TOLD)
        for recorded in read:
            event = self._ports.mapper.decode(recorded)
            change = change_of(event, state, recorded.position)
            if change is not None:
                changes.append(change)
        self.fences.preload(changes, after=after, marks=[(one.position, one.mark) for one in read])
        self.fences.resume(self._memory.narrowings.open)

    def committed(self, position: int, changes: Sequence[Change]) -> None:
        """A group is durable: every edge with a lease must receive its changes."""
        self.fences.committed(position, changes, mark=self._memory.state.mark)
        if self.fences.open_fences:
            self._woken.set()

    # -- receipts

    def _receipt(self, receipt: FenceReceipt) -> None:
        self._receipts.append(receipt)
        self._woken.set()

    async def watch_fences(self, bus: Bus) -> None:
        """End leases in time, and write receipts."""
        while True:
            deadline = self.fences.next_deadline_ns
            now = self._boottime_ns()
            seconds = 1.0 if deadline is None else max(0.001, (deadline - now) / 1e9)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, seconds)):
                    await self._woken.wait()
            self._woken.clear()
            self.fences.advance()
            self._write_receipts(bus)

    def _write_receipts(self, bus: Bus) -> None:
        while self._receipts:
            try:
                written = bus.queue.submit(_receipt_command(self._receipts[0]), SYSTEM_ASKING)
            except CannotAnswerError:
                return  # it cannot be taken now: tried again in the next round
            # One that is not written is written by the next owner: the fence stays open until then.
            written.add_done_callback(_look_at)
            del self._receipts[0]


def _look_at(future: asyncio.Future[Any]) -> None:
    """Log a failure: nothing else awaits this."""
    if not future.cancelled() and (error := future.exception()) is not None:
        log.info("fence.receipt_not_written", reason=type(error).__name__)


def _receipt_command(receipt: FenceReceipt) -> RecordFence:
    return RecordFence(
        fenced=receipt.positions,
        committed_at=receipt.committed_at,
        fenced_at=receipt.fenced_at,
        edges_acknowledged=receipt.edges_acknowledged,
        edges_expired=receipt.edges_expired,
    )
