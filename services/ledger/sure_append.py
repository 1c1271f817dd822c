"""Appends whose outcome is always determined: written, not written, or reported as unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from domain.ports import (
    ClaimTakenError,
    Group,
    HeadMovedError,
    Log,
    LogUnavailableError,
    NotOwnerError,
    OutcomeUnknownError,
)
from services.ledger.errors import Lost, NotOwnerHereError, UnknownOutcomeError

log = structlog.get_logger()

_RESOLVE_SECONDS = 5.0
_RESOLVE_PAUSE_SECONDS = 0.1


class SureAppends:
    """Appends groups, and finds out the outcome of one if the connection broke meanwhile."""

    def __init__(
        self,
        log_: Log,
        *,
        boottime_ns: Callable[[], int],
        held: Callable[[int], None],
        doubted: Callable[[], None],
    ) -> None:
        self._log = log_
        self._boottime_ns = boottime_ns
        self._held = held
        """Called after a durable append with the time when it was sent: the partition was held then."""
        self._doubted = doubted
        """Called when an append showed that nothing may be answered from memory: the lock's session was
        lost, or the log is not the one that was read."""
        self.in_doubt = False
        """Whether an append is under way whose outcome is not known yet."""
        self.session_lost = False
        """Whether the lock's session was lost at an append: another may have owned the partition since."""

    def reset(self) -> None:
        """The partition is owned again."""
        self.in_doubt = self.session_lost = False

    def begin(self, group: Group) -> asyncio.Task[None]:
        """Begin to append; the task ends when the group is durable.

        It raises ClaimTakenError and LogUnavailableError (nothing was written), or Lost.
        """
        self.in_doubt = True
        # Before the task runs: it is scheduled after all callers that were answered just now.
        sent_ns = self._boottime_ns()
        appending = asyncio.create_task(self._append(group, self._send(group), sent_ns), name="append")
        # In case nothing awaits it to its end: its outcome is then in doubt, and its error is not reported.
        appending.add_done_callback(lambda done: done.cancelled() or done.exception())
        return appending

    def _send(self, group: Group) -> Awaitable[int]:
        try:
            return self._log.append(group)
        except Exception as error:  # noqa: BLE001  # the task raises it
            refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    async def _append(self, group: Group, sent: Awaitable[int], sent_ns: int) -> None:
        try:
            await sent
            self._held(sent_ns)
        except OutcomeUnknownError:
            self.session_lost = True
            self._doubted()
            written = await self._resolve(group)
            self.in_doubt = False
            if not written:
                raise Lost(NotOwnerHereError("The connection broke; nothing was written.")) from None
        except HeadMovedError as error:
            # Another process appended in spite of the lock, or the log is not the one that was decided on.
            self.in_doubt = False
            self._doubted()
            raise Lost(NotOwnerHereError("The log is no longer as it was when this was decided.")) from error
        except NotOwnerError as error:
            self.in_doubt = False
            raise Lost(NotOwnerHereError("Another process owns the partition.")) from error
        except (ClaimTakenError, LogUnavailableError):
            self.in_doubt = False
            raise
        self.in_doubt = False

    async def _resolve(self, group: Group) -> bool:
        """Whether the group was written; returned only once it is certain, and on the standby, if any.

        PostgreSQL commits on this server alone if the wait for a standby is broken off, so the group
        being in the log proves nothing by itself.
        """
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                return await self._find_out(group)
        except TimeoutError:
            raise Lost(UnknownOutcomeError("The connection broke at the commit.")) from None

    async def _find_out(self, group: Group) -> bool:
        told = False
        while True:
            try:
                written = await self._log.committed(group)
                if written is None and await self._log.acquire():
                    # Only once the partition is held again is it sure that no commit is under way.
                    written = await self._log.committed(group)
                if written is not None:
                    return written
            except LogUnavailableError:
                if not told:
                    log.warning("commit.outcome_unknown")
                told = True
            await asyncio.sleep(_RESOLVE_PAUSE_SECONDS)
