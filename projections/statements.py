"""A wallet's statement: every line with the balance after it, read from the log itself."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from domain.projecting import EventReader, FoundEvent
from keyledger_language import events as e
from keyledger_language.instants import Instant
from projections.pages import decode_number, encode_number

# An organization's stream holds its money events in order, each with the balances after it: a table
# would only repeat them (90 bytes and an index entry for each charge, for ever).
LINES: Final[dict[type[e.Event], str]] = {
    e.CreditsDeposited: "deposit",
    e.CreditsAdjusted: "adjustment",
    e.UsageCharged: "charge",
    e.UsageRefunded: "refund",
    e.CreditsReserved: "reservation",
    e.ReservationCaptured: "capture",
    e.ReservationReleased: "release",
    e.ReservationExpired: "expiry",
}
_TYPES: Final = tuple(str(event_type.__struct_config__.tag) for event_type in LINES)
_NEWEST: Final = 2**62


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One movement of a wallet."""

    position: int
    at: Instant
    kind: str
    amount_micros: int
    """By how much the balance changed; 0 if money was only held or released."""
    balance_micros: int
    """The balance after it."""
    reserved_micros: int
    """What is reserved after it."""
    actor: str
    key_id: str | None
    reference: str | None
    request_id: str | None
    charge_id: str | None
    reservation_id: str | None


class StatementPage(NamedTuple):
    """Lines in order, and where the next page begins."""

    lines: list[StatementLine]
    next_cursor: str | None


def line_of(placed: FoundEvent) -> StatementLine:
    """The line that a money event makes."""
    event = placed.event
    assert isinstance(event, e.WalletEvent), "a statement has lines of money events only"
    return StatementLine(
        position=placed.position,
        at=event.at,
        kind=LINES[type(event)],
        amount_micros=balance_change(event),
        balance_micros=event.balance_micros,
        reserved_micros=event.reserved_micros,
        actor=event.actor,
        key_id=getattr(event, "key_id", None),
        reference=getattr(event, "reference", None),
        request_id=getattr(event, "request_id", None),
        charge_id=getattr(event, "charge_id", None),
        reservation_id=getattr(event, "reservation_id", None),
    )


def balance_change(event: e.WalletEvent) -> int:
    """By how much an event changes the balance."""
    match event:
        case e.UsageCharged() | e.ReservationCaptured():
            return -event.amount_micros
        case e.CreditsDeposited() | e.CreditsAdjusted() | e.UsageRefunded():
            return event.amount_micros
        case _:
            return 0


async def list_statement(
    events: EventReader,
    organization_id: str,
    *,
    newest_first: bool = True,
    limit: int = 50,
    cursor: str | None = None,
) -> StatementPage:
    """One page of an organization's statement; it never lags behind a write."""
    start = _NEWEST if newest_first else 0
    after = start if cursor is None else decode_number(cursor)
    placed = await events.stream(
        organization_id, _TYPES, after=after, limit=limit + 1, newest_first=newest_first
    )
    next_cursor = encode_number(placed[limit - 1].version) if len(placed) > limit else None
    return StatementPage([line_of(one) for one in placed[:limit]], next_cursor)
