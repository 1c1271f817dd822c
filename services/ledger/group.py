"""One group of commands, decided in order on a draft. No I/O: what it needs to know is passed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from domain import commands as c
from domain.changes import change_of, narrows
from domain.decisions import wallets
from domain.decisions.charging import UseOutcome
from domain.decisions.passing_time import record_due
from domain.decisions.plain_charges import PlainCharges
from domain.decisions.reservations import CaptureOutcome
from domain.desk import SYSTEM_ASKING, Desk, Limiter
from domain.errors import IdempotencyConflictError, InvalidError, LedgerError
from domain.facts import FactsBook
from domain.personal import PLATFORM, key_subject
from domain.ports import NewClaim, TakenClaim
from domain.state import Draft, Due, State
from keyledger_language import MALFORMED, MISSING, NOT_FOUND, UNUSABLE, VALID, Change
from keyledger_language.events import Event
from keyledger_language.instants import SECOND, Instant
from services.ledger.errors import RefusedLatelyError
from services.ledger.handlers import CLAIM, DECIDE, ENDS, REPLAY, RESTRICTS, may_take_away
from services.ledger.jobs import Done, Idempotency, Job
from services.ledger.recent_refusals import RecentRefusals

_DIGEST_BYTES = 16
_FENCE_BYTES = 8
_ANSWER_FROM = _DIGEST_BYTES + _FENCE_BYTES
"""A kept answer: digest of the request, position of its fence (0: none), the answer itself."""
MOST_EVENTS = 4_000
"""A group with this many events takes no further command; the log takes 10,000 at once."""
MOST_EVENTS_OF_A_COMMAND = 5_000
_NEEDS_NO_LOOK_BACK = UNUSABLE | {VALID, MISSING, MALFORMED, NOT_FOUND}
"""The key's own state is judged each time, so these codes need no look-up of an earlier try."""


class KnownClaim(NamedTuple):
    """A claim that the log holds, with the event it points to (None for an idempotency key)."""

    position: int
    event: Event | None
    answer: bytes | None
    """Of an idempotency key; empty if it cannot be read any more."""


class Tools(NamedTuple):
    """What decisions are made with."""

    facts: FactsBook
    limiter: Limiter
    entropy: Callable[[], int]
    partition: int
    idempotency_seconds: int


class PoisonedError(Exception):
    """A command recorded events and then failed, or failed in a way it must not: it has to be left out."""

    def __init__(self, job: Job, cause: Exception, *, foreseen: bool = False) -> None:
        super().__init__(str(cause))
        self.job = job
        self.cause = cause
        self.foreseen = foreseen


class TakeAway(NamedTuple):
    """A command that may take away and took nothing away itself: it waits for the fences of others."""

    done: Done
    subjects: frozenset[str] | None
    """It waits for fences that may concern these; None: for all."""
    always: bool
    """Whether it reports that all fences hold even if none is open."""

    def settle(self, newest_open: int | None) -> None:
        """Set the fence that it waits for."""
        if newest_open is not None:
            self.done.fence_position = newest_open
        elif self.always:
            self.done.fence_position = self.done.position


class DecidedGroup:
    """The outcome of every job, if the draft is committed.

    `above`: a group whose commit is under way; this one is decided on its outcome.
    """

    def __init__(
        self,
        state: State,
        tools: Tools,
        now: Instant,
        find_known: Callable[[bytes], KnownClaim | None],
        *,
        above: DecidedGroup | None = None,
        refusals: RecentRefusals | None = None,
    ) -> None:
        self.draft: Draft = Draft(state, None if above is None else above.draft)
        self.base = self.draft.head
        self.base_mark = self.draft.mark
        self._above = above
        self._refusals = RecentRefusals() if refusals is None else refusals
        self.desk = Desk(
            self.draft,
            now=now,
            facts=tools.facts,
            limiter=tools.limiter,
            entropy=tools.entropy,
            partition=tools.partition,
        )
        self._find_known = find_known
        self.answers_kept: dict[bytes, str] = {}
        """By claim: the subject whose data key encrypts the answer."""
        self.outcomes: list[tuple[Job, Done | Exception]] = []
        self.unsure: dict[bytes, list[int]] = {}
        """Refusals of money whose request id may have been granted before: claim to indexes of outcomes."""
        self.deferred: list[Job] = []
        """Jobs for the next group: another job here has their idempotency key, or this group is full."""
        self.changes: list[Change] = []
        self.take_aways: list[TakeAway] = []
        """Commands whose fences are determined once this group is committed."""
        self._tools = tools
        self._writers: list[tuple[int, Job]] = []
        """The jobs that wrote events, each with the number of events up to and including its own."""
        self._by_time = 0

    # -- deciding

    def decide(self, due: Iterable[Due], jobs: Sequence[Job], checked: frozenset[bytes]) -> None:
        """Record what is due, then decide every job in order."""
        self.desk.asking = SYSTEM_ASKING
        for entry in due:
            record_due(self.desk, entry)
        self._by_time = len(self.desk.placed)
        plain = PlainCharges(self.desk, self._was_taken)
        for job in jobs:
            command = job.command
            if type(command) is c.ChargeUsage and job.idempotency is None:
                self._decide_charge(job, command, plain, checked)
            else:
                self._decide(job, checked)
        if self.draft.settings_changed:
            self._collect_changes()

    def _decide_charge(
        self, job: Job, charge: c.ChargeUsage, plain: PlainCharges, checked: frozenset[bytes]
    ) -> None:
        desk = self.desk
        # While there are recent refusals, a forwarded charge is decided the long way.
        if len(desk.placed) < MOST_EVENTS and (job.waited_past is None or not self._refusals.any):
            desk.begin(job.asking)
            try:
                outcome = plain.decide(charge)
            except Exception as error:
                raise PoisonedError(job, error) from error
            if outcome is not None:
                self._writers.append((len(desk.placed), job))
                self.outcomes.append((job, Done(result=outcome, position=outcome.position, wrote=True)))
                return
        self._decide(job, checked)

    def _was_taken(self, claim: bytes) -> bool:
        """Whether the claim was taken before this group, as far as is known."""
        above = self._above
        return (above is not None and claim in above.desk.taken) or self._find_known(claim) is not None

    def _decide(self, job: Job, checked: frozenset[bytes]) -> None:
        desk, placed, idempotency = self.desk, self.desk.placed, job.idempotency
        before = len(placed)
        if before >= MOST_EVENTS or (idempotency is not None and idempotency.claim in self.answers_kept):
            self.deferred.append(job)
            return
        desk.begin(job.asking)
        claim: bytes | None = None
        taken: tuple[int, Event] | None = None
        refused: Any = None
        try:
            answered = None if idempotency is None else self._answered_before(idempotency, job.command)
            if answered is not None:
                self.outcomes.append((job, answered))
                return
            claim = self._claim_of(job)
            taken = None if claim is None else self._taken(claim)
            if claim is not None and taken is None:
                self._refuse_older(job, claim)
            refused = self._result(job, taken)
            self._conclude(job, refused, before)
        except RefusedLatelyError as error:
            self.outcomes.append((job, error))
            return
        except LedgerError as error:
            if len(placed) != before:
                raise PoisonedError(job, error) from error
            self.outcomes.append((job, error))
        except Exception as error:
            raise PoisonedError(job, error) from error
        if len(placed) > before:
            self._note_writer(job, before)
        elif claim is not None and taken is None:
            self._note_refusal(claim, refused, checked)

    def _note_refusal(self, claim: bytes, refused: Any, checked: frozenset[bytes]) -> None:
        if _is_refusal(refused):
            self._refusals.note(claim)
        if claim not in checked and _may_be_a_replay(refused):
            self.unsure.setdefault(claim, []).append(len(self.outcomes) - 1)

    def _refuse_older(self, job: Job, claim: bytes) -> None:
        """A forwarded try that may be older than a refusal of its claim is not decided.

        Refusals are noted when they are decided: one in the group under way counts before it is answered.
        """
        if job.waited_past is not None and (number := self._refusals.find(claim)) > job.waited_past:
            raise RefusedLatelyError(number)

    def _note_writer(self, job: Job, before: int) -> None:
        written = len(self.desk.placed)
        self._writers.append((written, job))
        if written - before > MOST_EVENTS_OF_A_COMMAND:
            message = f"it would change more than {MOST_EVENTS_OF_A_COMMAND} things at once: ask for fewer"
            raise PoisonedError(job, InvalidError("body", message), foreseen=True)

    def job_of(self, index: int) -> Job | None:
        """The job that wrote the event at this index of the group; None if it was recorded as due."""
        if index < self._by_time:
            return None
        return next((job for written, job in self._writers if index < written), None)

    def _result(self, job: Job, taken: tuple[int, Event] | None) -> Any:  # each decision's own
        desk, command = self.desk, job.command
        if isinstance(command, c.RefundCharge):
            if taken is None:
                return wallets.refund(desk, command, job.charge)
            return wallets.replay_refund(desk, command, job.charge, taken[1], taken[0])
        if taken is None:
            return DECIDE[type(command)](desk, command)
        return REPLAY[type(command)](desk, command, taken[1], taken[0])

    def _claim_of(self, job: Job) -> bytes | None:
        command = job.command
        if isinstance(command, c.RefundCharge):
            return wallets.refund_claim(self.desk, command, job.charge)
        find = CLAIM.get(type(command))
        return None if find is None else find(self.desk, command)

    def _taken(self, claim: bytes) -> tuple[int, Event] | None:
        """Position and event of a claim made in this group or before it."""
        position = self.desk.taken.get(claim)
        if position is not None:
            return position, self.desk.placed[position - self.base - 1].event
        if self._above is not None and claim in self._above.desk.taken:
            return self._above._taken(claim)  # noqa: SLF001  # of the same class
        known = self._find_known(claim)
        return None if known is None or known.event is None else (known.position, known.event)

    def _answered_before(self, idempotency: Idempotency, command: c.Command) -> Done | None:
        known = self._find_known(idempotency.claim)
        if known is None or known.answer is None:
            return None
        if not known.answer:
            msg = "The answer kept under this Idempotency-Key cannot be read any more."
            raise IdempotencyConflictError(msg, field="Idempotency-Key")
        if known.answer[:_DIGEST_BYTES] != idempotency.body_digest:
            msg = "This Idempotency-Key was used before, with another request."
            raise IdempotencyConflictError(msg, field="Idempotency-Key")
        fence = int.from_bytes(known.answer[_DIGEST_BYTES:_ANSWER_FROM], "big")
        done = Done(position=known.position, fence_position=fence or None, replay=known.answer[_ANSWER_FROM:])
        if not fence and may_take_away(command):
            self.take_aways.append(TakeAway(done, None, type(command) in ENDS))
        return done

    def _conclude(self, job: Job, result: Any, before: int) -> None:
        draft = self.draft
        done = Done(result=result, position=draft.head, wrote=len(self.desk.placed) > before)
        if draft.settings_changed and done.wrote:
            done.fence_position = self._last_narrowing(before)
            done.narrowed = done.fence_position is not None
        if not done.narrowed and may_take_away(job.command):
            self.take_aways.append(self._take_away(job.command, done, before))
        if job.idempotency is not None and job.render is not None:
            answer = job.render(result, draft, done.position)
            self._keep_answer(job.idempotency, answer, done.fence_position)
            self.answers_kept[job.idempotency.claim] = self._subject_of(job.command, before)
        self.outcomes.append((job, done))

    def _keep_answer(self, idempotency: Idempotency, answer: bytes, fence_position: int | None) -> None:
        """Keep the first answer, with its fence's position, even if the command found nothing to do.

        Its claim points to the group's last event so far; -1 is the head before the group.
        """
        index = len(self.desk.placed) - 1
        fence = (fence_position or 0).to_bytes(_FENCE_BYTES, "big")
        expires_at = self.desk.now + self._tools.idempotency_seconds * SECOND
        self.desk.claims.append(
            NewClaim(idempotency.claim, index, expires_at, idempotency.body_digest + fence + answer)
        )

    def _subject_of(self, command: c.Command, before: int) -> str:
        """The subject whose data key encrypts a command's answer: the organization that it is about."""
        about = {placed.event.organization_id for placed in self.desk.placed[before:]}
        if not about:
            # It found nothing to do, and its answer shows what exists already.
            about = self._organizations_of(command)
        return key_subject(about.pop()) if len(about) == 1 else PLATFORM

    def _organizations_of(self, command: c.Command) -> set[str | None]:
        named: str | None = getattr(command, "organization_id", None)
        if named is not None:
            return {named}
        secret = self.draft.secrets.find(getattr(command, "fingerprint", b""))
        key_ids = (
            getattr(command, "key_id", None),
            *getattr(command, "key_ids", ()),
            None if secret is None else secret.key_id,
        )
        keys = (self.draft.keys.find(one) for one in key_ids if one is not None)
        return {key.organization_id for key in keys if key is not None}

    def _changes_of(self, before: int) -> list[Change]:
        """The changes that edges must receive, of the events from this index on."""
        base, draft, placed = self.base + 1, self.draft, self.desk.placed
        found = (change_of(placed[index].event, draft, base + index) for index in range(before, len(placed)))
        return [change for change in found if change is not None]

    def _last_narrowing(self, before: int) -> int | None:
        return max((one.position for one in self._changes_of(before) if one.narrowing), default=None)

    def _take_away(self, command: c.Command, done: Done, before: int) -> TakeAway:
        """The fences that it waits for: all open ones, except for a change that turned out to widen.

        That one grants, but what it did not restore may have been taken away from the same subject just now.
        """
        written = self.desk.placed[before:]
        if type(command) in RESTRICTS and written and not any(narrows(one.event) for one in written):
            return TakeAway(done, frozenset(one.id for one in self._changes_of(before)), always=False)
        return TakeAway(done, None, always=True)

    def _collect_changes(self) -> None:
        self.changes = self._changes_of(0)

    def rest_on_state(self) -> None:
        """The group below is durable: this one is based on the state from now on."""
        self.draft.rest_on_state()
        self._above = None

    # -- claims that were looked up

    def settle(self, claim: bytes, event: Event, position: int) -> None:
        """Refused jobs turn out to be retries of a granted one: they get that answer."""
        for index in self.unsure[claim]:
            job, _ = self.outcomes[index]
            self.desk.begin(job.asking)
            try:
                result = self._result(job, (position, event))
            except LedgerError as error:
                self.outcomes[index] = (job, error)
            else:
                self.outcomes[index] = (job, Done(result=result, position=self.draft.head))

    # -- ending

    def merge(self) -> None:
        """The group is durable: merge it into the state."""
        self.draft.merge()
        facts = self._tools.facts
        if any(change.kind != "key" for change in self.changes):
            facts.forget_all()
        else:
            for change in self.changes:
                key = self.draft.keys.find(change.id)
                if key is not None:
                    facts.forget(key)


def _is_refusal(result: Any) -> bool:
    """Whether the decision refused. A command that was refused by an error has no result."""
    return result is None or getattr(result, "code", VALID) != VALID


def _may_be_a_replay(result: Any) -> bool:
    """Whether the money was refused by a check that a replay does not undergo."""
    if result is None:
        return True
    if isinstance(result, UseOutcome):
        return result.code not in _NEEDS_NO_LOOK_BACK
    return isinstance(result, CaptureOutcome) and result.code != VALID


def with_event(taken: TakenClaim, event: Event | None) -> KnownClaim:
    """A claim as the log holds it, with its event."""
    return KnownClaim(taken.position, event, taken.answer)
