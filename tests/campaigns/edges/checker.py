"""What must never happen: an accept that arrived after the fence, or too long after the commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_SHOWN = 20


class Death(NamedTuple):
    """Something that was taken away, and when; all times are CLOCK_BOOTTIME in nanoseconds."""

    kind: str
    slots: range
    """What it took along."""
    answered: int | None
    """When the caller was told that the fence holds; None: never."""
    committed: int
    fenced: int
    """From when on the receipt says that nobody accepts."""
    resumed: bool = False
    """A new owner went on with the fence: the commit was known at some time behind `committed`."""


@dataclass
class Findings:
    """What was seen; `lines` should be empty."""

    lines: list[str] = field(default_factory=list)
    checked: int = 0
    after_the_fence: int = 0
    too_late: int = 0
    worst_ns: int = 0
    """The latest accept behind the commit."""
    worst_resumed_ns: int = 0
    """The same where the owner died between its commit and its fence."""
    stale: int = 0
    """Lives of edges that accepted a use behind its commit at all."""

    def add(self, line: str) -> None:
        if len(self.lines) < _SHOWN:
            self.lines.append(line)

    def __str__(self) -> str:
        return (
            f"{self.after_the_fence} accepts after a fence, {self.too_late} later than the bound; "
            f"worst staleness {self.worst_ns / 1e6:.1f} ms "
            f"({self.worst_resumed_ns / 1e6:.1f} ms where the owner died in between); "
            f"{self.stale:,} of {self.checked:,} (edge, secret) pairs stale for a while"
        )


def check(
    deaths: Iterable[Death], books: Iterable[tuple[str, Sequence[int]]], *, bound_ns: int, clock_error_ns: int
) -> Findings:
    """Hold the last accept of each slot, in each life of each edge, against its death.

    The last one is enough: what is dead stays dead, so an earlier one cannot be worse.
    """
    findings = Findings()
    books = list(books)
    for death in deaths:
        receipt = death.fenced + clock_error_ns
        fenced = receipt if death.answered is None else min(receipt, death.answered)
        for name, arrivals in books:
            for slot in death.slots:
                if arrived := arrivals[slot]:
                    accept = _Accept(f"{name} accepted slot {slot} ({death.kind})", arrived)
                    _check_last(findings, accept, death, fenced=fenced, bound=bound_ns + clock_error_ns)
    return findings


class _Accept(NamedTuple):
    """The last accept of a slot."""

    said: str
    arrived: int


def _check_last(findings: Findings, accept: _Accept, death: Death, *, fenced: int, bound: int) -> None:
    findings.checked += 1
    late = accept.arrived - death.committed
    if late > 0:
        findings.stale += 1
    if death.resumed:
        findings.worst_resumed_ns = max(findings.worst_resumed_ns, late)
    else:
        findings.worst_ns = max(findings.worst_ns, late)
    if accept.arrived > fenced:
        findings.after_the_fence += 1
        findings.add(f"{accept.said} {(accept.arrived - fenced) / 1e6:.3f} ms after its fence")
    if late > bound and not death.resumed:
        findings.too_late += 1
        findings.add(f"{accept.said} {late / 1e6:.3f} ms after its commit")
