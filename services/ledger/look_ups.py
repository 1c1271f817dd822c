"""What decisions need to know that is not in memory: claims, charges, reservations; read from the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import structlog

from domain import commands as c
from domain.ids import is_id, place_of
from domain.ports import DataKeyError, TakenClaim
from keyledger_language import events as e
from services.ledger.group import DecidedGroup, KnownClaim, with_event
from services.ledger.jobs import Job
from services.ledger.kept_answers import open_answer, subject_of
from services.ledger.memory import LedgerMemory
from services.ledger.ports import Ports

log = structlog.get_logger()

Known = dict[bytes, KnownClaim]
"""Claims that were looked up for a group."""


class LookUps:
    """Reads the log, before a group is decided or once a claim turns out to be taken."""

    def __init__(
        self, ports: Ports, memory: LedgerMemory, find_reservation: Callable[[str], Awaitable[None]]
    ) -> None:
        self._log = ports.log
        self._mapper = ports.mapper
        self._state = memory.state
        self._recent = memory.recent.find
        self._find_reservation = find_reservation
        """Brings a settled reservation back into the state, if there is one of that id."""

    async def before(self, jobs: list[Job], known: Known) -> None:
        """Look up idempotency keys, and the charges that refunds name: both are rare, so this comes first."""
        claims = [job.idempotency.claim for job in jobs if job.idempotency is not None]
        if claims:
            await self.look_up(claims, known)
        refunds = [job for job in jobs if isinstance(job.command, c.RefundCharge)]
        if refunds:
            await self._read_charges(refunds)
        for job in jobs:
            command = job.command
            if (
                isinstance(command, c.CaptureReservation | c.ReleaseReservation)
                and command.reservation_id not in self._state.reservations
            ):
                await self._find_reservation(command.reservation_id)

    async def _read_charges(self, refunds: list[Job]) -> None:
        """The events at the positions in the charges' ids; the decision checks if each is that charge."""
        places: dict[Job, int] = {}
        for job in refunds:
            assert isinstance(job.command, c.RefundCharge), "only refunds name a charge"
            charge_id = job.command.charge_id
            if not is_id("chg", charge_id):
                continue
            partition, position = place_of(charge_id)
            if partition == self._log.partition and position <= self._state.head:
                places[job] = position
        if not places:
            return
        events = await self._events_at(set(places.values()))
        for job, position in places.items():
            job.charge = events.get(position)

    async def _events_at(self, positions: Iterable[int]) -> dict[int, e.Event]:
        recorded = await self._log.read_at(sorted(positions))
        return {one.position: self._mapper.decode(one) for one in recorded}

    async def look_up(self, claims: list[bytes], known: Known) -> frozenset[bytes]:
        """Look up claims in the log; those that are taken become known, with their events."""
        taken = await self._log.claims(claims)
        if any(one.answer is not None for one in taken.values()):
            taken = await self._opened(dict(taken))
        positions = {one.position for one in taken.values() if one.answer is None}
        events = await self._events_at(positions) if positions else {}
        for digest, one in taken.items():
            known[digest] = with_event(one, None if one.answer is not None else events.get(one.position))
        return frozenset(claims)

    async def _opened(self, taken: dict[bytes, TakenClaim]) -> dict[bytes, TakenClaim]:
        """The claims with kept answers decrypted; an answer that cannot be read any more is empty."""
        data_keys = self._mapper.data_keys
        answers = {digest: one.answer for digest, one in taken.items() if one.answer is not None}
        subjects = {subject for kept in answers.values() if (subject := subject_of(kept)) is not None}
        if unknown := [subject for subject in subjects if not data_keys.knows(subject)]:
            data_keys.learn(await self._log.data_keys(unknown))
        for digest, kept in answers.items():
            try:
                opened = open_answer(digest, kept, data_keys)
            except DataKeyError as error:
                log.error("answer.unreadable", problem=str(error))  # noqa: TRY400 - the message says it all
                opened = None
            taken[digest] = taken[digest]._replace(answer=opened or b"")
        return taken

    async def settle(self, group: DecidedGroup, known: Known) -> frozenset[bytes]:
        """If refused money was granted to an earlier try, that becomes the answer."""
        if not group.unsure:
            return frozenset()
        claims = list(group.unsure)
        await self.look_up(claims, known)
        for claim in claims:
            found = known.get(claim)
            if found is not None and found.event is not None:
                group.settle(claim, found.event, found.position)
        return frozenset(claims)

    def finder(self, known: Known) -> Callable[[bytes], KnownClaim | None]:
        """Finds claims that were looked up for a group, or were made by groups before it."""
        recent = self._recent
        return lambda digest: known.get(digest) or recent(digest)
