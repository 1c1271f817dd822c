"""Was every answer true? Requests and answers as clients saw them, against the log, by position.

One pass over the operations and one over the log, on plain tuples: a million operations take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from keyledger_language import events as e

Kind = Literal[
    "charge", "reserve", "capture", "release", "refund", "deposit", "create", "revoke", "verify",
]  # fmt: skip
_USES: frozenset[str] = frozenset({"charge", "reserve", "capture", "refund"})
_MONEY: frozenset[str] = _USES | {"deposit"}
Name = tuple[str, str, str]
_SHOWN = 20
EDGE_SECONDS = 1.0 / (1 - 0.01) + 0.02
"""A lease with its drift: so long after a commit an edge may still accept what it has not been told of."""


@dataclass(slots=True)
class Operation:
    """One thing that a client wanted, however often it had to ask."""

    kind: Kind
    name: str
    """The request id, reference, idempotency key, or the key that is revoked or verified."""
    organization_id: str = ""
    key_id: str = ""
    amount: int = 0
    invoked: float = 0.0
    """When it was first asked."""
    completed: float | None = None
    """When its answer came; None: it never did."""
    code: str | None = None
    """`valid` when it was done, else why it was refused."""
    thing: str | None = None
    """The id of what was made."""
    position: int | None = None
    head: int | None = None
    """The position as of which it was refused."""
    tries: int = 1
    """How often it was asked for."""
    replayed: bool = False
    balance: int | None = None
    """The wallet's balance, as the answer told it."""
    at_edge: bool = False
    """An edge answered it from memory, perhaps: it knows of a revocation once that is fenced."""
    gives_up: bool = True
    """A try that is not answered in time is called off: it cannot be granted after a later refusal."""
    fenced: bool = True
    """A revocation: its answer said that no edge accepts the key any more."""
    revoked_at: int | None = None
    """Where its key's revocation stood that it was told of, if that went with a lost history."""


class Recorded(NamedTuple):
    """One event of the log, as far as the check needs it."""

    position: int
    kind: str
    name: str
    organization_id: str
    key_id: str
    amount: int
    thing: str
    balance: int
    reserved: int
    held: int
    """What it took from (or gave back to) what is reserved."""
    spent: int
    """What it took from the balance."""


@dataclass
class Findings:
    """What is wrong: nothing should be."""

    lines: list[str] = field(default_factory=list)
    operations: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_written: int = 0
    granted_later: int = 0
    """Refused at the last try, and then granted to an earlier one that had no answer."""
    events: int = 0
    difference_micros: int = 0
    lost: int = 0
    doubled: int = 0
    accepted_late: int = 0
    charged_after_refusal: int = 0
    """Of those, where no earlier try was under way any more."""

    def add(self, line: str) -> None:
        if len(self.lines) < _SHOWN:
            self.lines.append(line)

    def __str__(self) -> str:
        return (
            f"{self.operations:,} operations ({self.acknowledged:,} done, {self.refused:,} refused, "
            f"{self.unknown:,} never answered, {self.unknown_written:,} of these written, "
            f"{self.granted_later} granted to an earlier try after a refusal), "
            f"{self.events:,} events: {self.lost} lost, {self.doubled} doubled, "
            f"{self.difference_micros} micros of difference, {len(self.lines)} findings"
        )


def record(position: int, event: e.Event) -> Recorded | None:  # noqa: PLR0911  # one for each kind
    """An event for the check; None for one that no operation of ours brings about."""
    organization = event.organization_id or ""
    match event:
        case e.UsageCharged():
            return Recorded(
                position, "charge", event.request_id, organization, event.key_id, event.amount_micros,
                event.charge_id, event.balance_micros, event.reserved_micros, 0, event.amount_micros,
            )  # fmt: skip
        case e.CreditsReserved():
            return Recorded(
                position, "reserve", event.request_id, organization, event.key_id, event.amount_micros,
                event.reservation_id, event.balance_micros, event.reserved_micros, event.amount_micros, 0,
            )  # fmt: skip
        case e.ReservationCaptured():
            return Recorded(
                position, "capture", event.request_id, organization, event.key_id, event.amount_micros,
                event.charge_id, event.balance_micros, event.reserved_micros,
                -event.held_micros - event.released_micros, event.amount_micros,
            )  # fmt: skip
        case e.ReservationReleased():
            return Recorded(
                position, "release", event.reservation_id, organization, event.key_id, 0,
                event.reservation_id, event.balance_micros, event.reserved_micros, -event.released_micros, 0,
            )  # fmt: skip
        case e.UsageRefunded():
            return Recorded(
                position, "refund", event.request_id, organization, event.key_id, event.amount_micros,
                event.charge_id, event.balance_micros, event.reserved_micros, 0, -event.amount_micros,
            )  # fmt: skip
        case e.CreditsDeposited() | e.CreditsAdjusted():
            return Recorded(
                position, "deposit", event.reference, organization, "", event.amount_micros, "",
                event.balance_micros, event.reserved_micros, 0, -event.amount_micros,
            )  # fmt: skip
        case e.KeyCreated():
            name = event.private.name if event.private is not None else ""
            return Recorded(
                position, "create", name or "", organization, event.key_id, 0, event.key_id, 0, 0, 0, 0
            )
        case e.KeyRevoked():
            return Recorded(
                position, "revoke", event.key_id, organization, event.key_id, 0, event.key_id, 0, 0, 0, 0
            )
        case _:
            return None


def _name(kind: str, organization_id: str, name: str) -> Name:
    """What may be there once: a request id for one use of any kind, a reference for one top-up."""
    if kind in _USES:
        return ("use", organization_id, name)
    return (kind, organization_id if kind == "deposit" else "", name)


def check(operations: Iterable[Operation], log: Iterable[Recorded], head: int) -> Findings:
    """Hold what clients were told against what the log says."""
    findings = Findings(events=head)
    by_name = _read_log(log, findings)
    done: list[tuple[int, float, float]] = []
    revoked: list[Operation] = []
    asked: list[Operation] = []
    for operation in operations:
        findings.operations += 1
        if operation.kind == "verify":
            asked.append(operation)
            continue
        _check_operation(operation, by_name, findings)
        if operation.completed is None:
            continue
        if operation.kind == "revoke" and operation.code == "valid":
            revoked.append(operation)
        if operation.kind == "charge":
            asked.append(operation)
        if operation.code == "valid" and operation.position is not None and not operation.replayed:
            done.append((operation.position, operation.invoked, operation.completed))
    _check_order(done, findings)
    _check_revoked(asked, revoked, findings)
    return findings


def _read_log(log: Iterable[Recorded], findings: Findings) -> dict[Name, Recorded]:
    """Each name once, and every balance what it was before and what was done: never below zero."""
    by_name: dict[Name, Recorded] = {}
    wallets: dict[str, tuple[int, int]] = {}
    last = 0
    for one in log:
        position, kind, name = one[0], one[1], one[2]
        if position <= last:
            findings.add(f"position {position} stands behind {last}")
        last = position
        key = _name(kind, one[3], name)
        if key in by_name and kind != "release":
            findings.doubled += 1
            findings.add(f"{kind} {name} stands twice: at {by_name[key].position} and {position}")
        by_name[key] = one
        if kind in {"create", "revoke"}:
            continue
        organization, balance, reserved = one[3], one[7], one[8]
        before = wallets.get(organization, (0, 0))
        off = abs(before[0] - one[10] - balance) + abs(before[1] + one[9] - reserved)
        if off:
            findings.difference_micros += off
            findings.add(f"{kind} {name} at {position}: {off} micros off what was before and what was done")
        if reserved < 0 or balance < reserved:
            findings.add(f"{kind} {name} at {position} overspends: {balance} and {reserved} reserved")
        wallets[organization] = (balance, reserved)
    return by_name


def _check_operation(operation: Operation, by_name: dict[Name, Recorded], findings: Findings) -> None:
    found = by_name.get(_name(operation.kind, operation.organization_id, operation.name))
    if found is not None and found.kind != operation.kind:
        found = None  # its request id was used for something else, as it was told
    if operation.completed is None:
        findings.unknown += 1
        findings.unknown_written += found is not None
        return
    if operation.code != "valid":
        findings.refused += 1
        if found is None or operation.kind not in _MONEY or operation.replayed:
            return
        if operation.code == "revoked" and _revoked_at(operation, by_name) > found.position:
            # The first try's answer was lost, and the key's own state is judged at each try.
            findings.unknown_written += 1
        elif operation.tries > 1 and operation.head is not None and found.position > operation.head:
            # An earlier try, given up by the client, was still on its way: refused uses are decided anew.
            findings.granted_later += 1
            findings.charged_after_refusal += operation.gives_up
        else:
            findings.add(
                f"{operation.kind} {operation.name} was refused ({operation.code}) as of {operation.head} "
                f"at try {operation.tries}, and is there at {found.position}"
            )
        return
    findings.acknowledged += 1
    if found is None:
        findings.lost += 1
        findings.add(f"{operation.kind} {operation.name} was acknowledged and is not in the log")
        return
    if operation.kind in _MONEY and operation.amount != found.amount:
        findings.difference_micros += abs(operation.amount - found.amount)
        findings.add(f"{operation.kind} {operation.name}: {operation.amount} told, {found.amount} in the log")
    if operation.thing is not None and operation.thing != found.thing:
        findings.add(f"{operation.kind} {operation.name} told {operation.thing}, the log has {found.thing}")
    if operation.position is not None and operation.kind in _MONEY and operation.position != found.position:
        findings.add(f"{operation.kind} {operation.name}: {operation.position} told, {found.position} true")
    if operation.balance is not None and not operation.replayed and operation.balance != found.balance:
        findings.difference_micros += abs(operation.balance - found.balance)
        findings.add(f"{operation.kind} {operation.name} told a balance of {operation.balance}")


def _revoked_at(operation: Operation, by_name: dict[Name, Recorded]) -> int:
    """The position of its key's revocation, in the log or in a lost history; 0 for none."""
    recorded = by_name.get(_name("revoke", "", operation.key_id))
    return max(recorded.position if recorded is not None else 0, operation.revoked_at or 0)


def _check_order(done: list[tuple[int, float, float]], findings: Findings) -> None:
    """What was answered before another was asked stands before it."""
    done.sort(reverse=True)
    earliest, at = float("inf"), 0
    for position, invoked, completed in done:
        if earliest < invoked:
            findings.add(f"position {at} was answered before {position} was asked")
        if completed < earliest:
            earliest, at = completed, position


def _check_revoked(asked: list[Operation], revocations: list[Operation], findings: Findings) -> None:
    """Nothing that was asked after a revocation was acknowledged is valid."""
    at_ledger, at_edges = revoked_since(revocations)
    for operation in asked:
        since = at_edges if operation.at_edge else at_ledger
        if operation.code == "valid" and operation.invoked > since.get(operation.key_id, float("inf")):
            findings.accepted_late += 1
            findings.add(f"{_seen(operation)}: {operation.key_id} was revoked before it was asked")


def revoked_since(revocations: Iterable[Operation]) -> tuple[dict[str, float], dict[str, float]]:
    """Since when no ledger may accept a key, and since when no edge may."""
    at_ledger: dict[str, float] = {}
    at_edges: dict[str, float] = {}
    for one in revocations:
        if one.completed is None:
            continue
        at_ledger[one.name] = min(one.completed, at_ledger.get(one.name, float("inf")))
        held = one.completed if one.fenced else one.completed + EDGE_SECONDS
        at_edges[one.name] = min(held, at_edges.get(one.name, float("inf")))
    return at_ledger, at_edges


def _seen(operation: Operation) -> str:
    return f"{operation.kind} {operation.name} {'at an edge' if operation.at_edge else 'at a ledger'}"
