"""Was every answer true, though history was lost and began anew? Answers of several epochs against the log.

Within an epoch the checker of the crash campaigns judges. Where PostgreSQL came back with less than it
had, exactly what lies beyond the restored head may be missing, must be missing, and is accepted nowhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from tests.campaigns.checker import Findings, Operation, Recorded, check, revoked_since

ANSWER_SECONDS = 8.5
"""A client waits so long for one try; later answers are of a try in the new history."""
Fate = Literal["kept", "lost", "open"]


class Loss(NamedTuple):
    """One time that history ended beyond a head, and another began there. Times as operations have them."""

    head: int
    """The last position that both histories have."""
    ended: float
    """Whatever was answered before this was of the old history."""
    began: float
    """Whatever was asked after this was answered out of the new one."""
    settled: float
    """The operator is done, and a lease has passed: nobody remembers the old one."""


@dataclass
class Judgement:
    """What is wrong within epochs and across them: nothing should be."""

    findings: Findings
    lines: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    """For each loss, how many acknowledged operations lay beyond the head."""
    open: Counter[str] = field(default_factory=Counter)
    """Answered while one history ended and the next began, or without a position: they may be of either."""
    remembered: int = 0
    """Accepts of what only a lost history knew."""

    @property
    def clean(self) -> bool:
        findings = self.findings
        wrong = (
            findings.lost, findings.doubled, findings.difference_micros, findings.accepted_late,
            findings.charged_after_refusal, self.remembered,
        )  # fmt: skip
        return not self.lines and not findings.lines and not any(wrong)

    def add(self, line: str) -> None:
        self.lines.append(line)

    def __str__(self) -> str:
        told = (
            f"{self.findings}, {self.findings.accepted_late} accepted after a fence,"
            f" {self.findings.charged_after_refusal} refused and then charged"
        )
        beyond = (
            f"beyond the restored heads {self.lost}, open {dict(self.open)}, {self.remembered} remembered"
        )
        return "\n".join([f"{told}; {beyond}", *self.findings.lines, *self.lines[:20]])


def judge(
    operations: Sequence[Operation], log: Sequence[Recorded], head: int, losses: Sequence[Loss]
) -> Judgement:
    """Hold what clients were told against the log that is left, and against what may be missing from it."""
    kept: list[Operation] = []
    lost: list[tuple[int, Operation]] = []
    unclear: Counter[str] = Counter()
    revocations = _revocations_that_may_be_lost(operations, losses)
    for operation in operations:
        number, fate = fate_of(operation, losses)
        if fate == "lost":
            lost.append((number, operation))
        elif fate == "open":
            unclear[operation.kind if operation.position else f"{operation.kind} without a position"] += 1
            kept.append(replace(operation, completed=None, code=None, position=None, balance=None))
        else:
            kept.append(_as_of_what_is_left(_told_of(operation, revocations, losses), losses))
    result = Judgement(check(kept, log, head), open=unclear)
    result.lost = [sum(number == n for number, _ in lost) for n in range(len(losses))]
    _check_missing(lost, kept, log, losses, result)
    _check_lost_revocations(lost, operations, losses, result)
    _check_lost_keys(lost, operations, log, losses, result)
    return result


def fate_of(operation: Operation, losses: Sequence[Loss]) -> tuple[int, Fate]:
    """Is what was acknowledged still there? And at which loss it went."""
    if operation.completed is None or operation.code != "valid" or operation.kind == "verify":
        return -1, "kept"
    for number, loss in enumerate(losses):
        if operation.invoked >= loss.began:
            continue
        if operation.position is None:
            return number, "open"
        if operation.position > loss.head:
            if operation.completed < loss.ended:
                return number, "lost"
            if operation.completed < loss.ended + ANSWER_SECONDS:
                return number, "open"
    return -1, "kept"


def unlisted(operations: Iterable[Operation], loss: Loss, number: int, listed: set[int]) -> list[int]:
    """Positions of acknowledged operations that went with this loss, were published, and are not listed."""
    return sorted(
        operation.position
        for operation in operations
        if operation.position is not None
        and not operation.replayed
        and loss.head < operation.position <= number
        and fate_of(operation, [loss])[1] == "lost"
        and operation.position not in listed
    )


def _revocations_that_may_be_lost(
    operations: Iterable[Operation], losses: Sequence[Loss]
) -> dict[str, list[tuple[int, float]]]:
    """By key, at which loss its revocation went or may have gone, and when it was first asked for."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in operations:
        if one.kind == "revoke" and (at := fate_of(one, losses))[1] != "kept":
            found[one.name].append((at[0], one.invoked))
    return found


def _told_of(
    operation: Operation, revocations: dict[str, list[tuple[int, float]]], losses: Sequence[Loss]
) -> Operation:
    """A use that was written, whose answer was lost, and that a lost revocation refused when it was repeated.

    The key's own state is judged at each try. What is left of that history ends before the revocation.
    """
    if operation.code != "revoked" or operation.completed is None:
        return operation
    for number, asked in revocations.get(operation.key_id, ()):
        if asked < operation.completed and operation.invoked < losses[number].began:
            return replace(operation, revoked_at=losses[number].head + 1)
    return operation


def _as_of_what_is_left(operation: Operation, losses: Sequence[Loss]) -> Operation:
    """A refusal that was given as of a lost position was given as of the head that is left, at the latest."""
    heads = [loss.head for loss in losses if operation.invoked < loss.began]
    if operation.head is None or not heads or operation.head <= min(heads):
        return operation
    return replace(operation, head=min(heads))


def _check_missing(
    lost: list[tuple[int, Operation]],
    kept: list[Operation],
    log: Sequence[Recorded],
    losses: Sequence[Loss],
    result: Judgement,
) -> None:
    """What lay beyond a head is not there, unless somebody asked for it again since."""
    there = {(one.kind, one.organization_id if one.kind != "create" else "", one.name) for one in log}
    again: dict[tuple[str, str], float] = defaultdict(float)
    for one in kept:
        again[one.kind, one.name] = max(again[one.kind, one.name], one.completed or float("inf"))
    for number, one in lost:
        name = one.kind, one.organization_id if one.kind != "create" else "", one.name
        # The ledger itself releases a reservation that has expired.
        if one.kind != "release" and name in there and again[one.kind, one.name] < losses[number].ended:
            result.add(
                f"{one.kind} {one.name} at {one.position} lay beyond {losses[number].head}, and is there"
            )


def _check_lost_revocations(
    lost: list[tuple[int, Operation]],
    operations: Iterable[Operation],
    losses: Sequence[Loss],
    result: Judgement,
) -> None:
    """Until it was lost a revocation held."""
    ends = {one.name: losses[number].ended for number, one in lost if one.kind == "revoke"}
    at_ledger, at_edges = revoked_since(one for _, one in lost if one.kind == "revoke")
    for one in operations:
        since = (at_edges if one.at_edge else at_ledger).get(one.key_id)
        if since is None or one.code != "valid" or one.kind not in {"verify", "charge"}:
            continue
        if since < one.invoked and one.completed is not None and one.completed < ends[one.key_id]:
            result.findings.accepted_late += 1
            result.add(f"{one.kind} {one.name}: {one.key_id} was revoked before it was asked")


def _check_lost_keys(
    lost: list[tuple[int, Operation]],
    operations: Iterable[Operation],
    log: Sequence[Recorded],
    losses: Sequence[Loss],
    result: Judgement,
) -> None:
    """A key that only a lost history knew is accepted by nobody any more."""
    known = {one.key_id for one in log if one.kind == "create"}
    settled = {
        one.thing: losses[number].settled
        for number, one in lost
        if one.kind == "create" and one.thing is not None and one.thing not in known
    }
    for one in operations:
        if one.code == "valid" and one.invoked > settled.get(one.key_id, float("inf")):
            result.remembered += 1
            where = "an edge" if one.at_edge else "a ledger"
            result.add(
                f"{one.kind} {one.name}: {where} accepted {one.key_id}, which only a lost history knew"
            )
