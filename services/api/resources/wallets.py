"""Wallets: an organization's prepaid balance, its terms, top-ups and statement."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from domain.accounts import Wallet
from domain.commands import UNSET, DepositCredits, SetWalletTerms, UnsetType
from domain.decisions.access import find_organization
from domain.decisions.wallets import DepositOutcome
from domain.state import Books
from keyledger_language.instants import to_text
from projections.statements import StatementLine, list_statement
from services.api.answering.money import WalletView, wallet_view
from services.api.answering.views import Micros, Position, Time, View
from services.api.asking.call import Call
from services.api.asking.fields import Amount, Body, Reason, SignedAmount
from services.api.lists import Paging, cursor_of, next_cursor_of, read_page
from services.api.operations import Reply, operation
from services.api.writing import Fencing, carry_out
from services.ledger.fence_results import FenceResult

_TAG: Final = "Wallets"
_PATH: Final = "/v1/organizations/{organization_id}/wallet"
_READ: Final = ("wallets:read",)
_WRITE: Final = ("wallets:write",)


class WalletTerms(Body, frozen=True, kw_only=True):
    """Terms to be set; those left out stay as they are."""

    credit_limit_micros: Amount | UnsetType | None = UNSET
    """How far below zero it may go, in micros; 0: prepaid; null: postpaid without limit."""
    alert_below_micros: Amount | UnsetType | None = UNSET
    """An event reports when less than this is available, in micros; null: never."""


class ChangedWalletView(WalletView, frozen=True, kw_only=True):
    """A wallet after its terms were set."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if a credit limit was set."""


class NewCredit(Body, frozen=True, kw_only=True):
    """A top-up, or (negative) an adjustment."""

    amount_micros: SignedAmount
    """What is paid in, in micros; negative: an adjustment."""
    reference: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
    """Your own id of it: the same reference counts once, for ever."""
    reason: Reason | None = None
    """Why, for the audit."""


class ListLines(Paging, frozen=True, kw_only=True):
    """Which page, in which order."""

    sort: Literal["at", "-at"] = "-at"
    """Newest first, or `at`: oldest first."""


class CreditView(View, frozen=True, kw_only=True):
    """A top-up or adjustment, as it was recorded."""

    amount_micros: Micros
    """What was paid in, in micros; negative: an adjustment."""
    reference: str
    """Your own id of it."""
    balance_micros: Micros
    """The balance right after it."""
    at: Time
    """When it was paid in."""
    position: Position


class CreditedView(View, frozen=True, kw_only=True):
    """The outcome of a top-up."""

    credit: CreditView
    """The top-up or adjustment."""
    wallet: WalletView
    """The wallet right after it."""
    replayed: bool
    """Whether this reference was credited before; if so, it counted then and not again."""
    position: Position


class StatementLineView(View, frozen=True, kw_only=True):
    """One movement of a wallet."""

    position: Position
    at: Time
    """When it happened."""
    kind: Literal[
        "deposit", "adjustment", "charge", "refund", "reservation", "capture", "release", "expiry"
    ]  # fmt: skip
    """What moved the money."""
    amount_micros: Micros
    """What the balance changed by, in micros; 0 if money was only held or released."""
    balance_micros: Micros
    """The balance right after it, in micros."""
    reserved_micros: Micros
    """What reservations held right after it, in micros."""
    actor: str
    """Who did it: the id of a key, or `system`."""
    key_id: str | None
    """The key that was used; null if none was."""
    reference: str | None
    """Your own id of a top-up; null for anything else."""
    request_id: str | None
    """The id of the use; null if there is none."""
    charge_id: str | None
    """The charge; null if there is none."""
    reservation_id: str | None
    """The reservation; null if there is none."""


class StatementView(View, frozen=True, kw_only=True):
    """A page of a wallet's movements."""

    items: list[StatementLineView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


@operation(
    "GET",
    _PATH,
    tag=_TAG,
    summary="Show a wallet",
    permissions=_READ,
    answer=WalletView,
    codes=("not_found",),
)
async def get_wallet(call: Call[Any, Any]) -> Reply:
    """A wallet, from the ledger's committed state."""
    organization = find_organization(call.desk, call.path["organization_id"])
    books = call.books
    return Reply(wallet_view(books.wallets[organization.id], call.place(books.head)))


@operation(
    "PATCH",
    _PATH,
    tag=_TAG,
    summary="Set a wallet's terms",
    permissions=_WRITE,
    query=Fencing,
    body=WalletTerms,
    answer=ChangedWalletView,
    codes=("not_found", "platform_only", "idempotency_conflict"),
    idempotent=True,
    example={"credit_limit_micros": 0, "alert_below_micros": 5_000_000},
)
async def update_wallet(call: Call[Fencing, WalletTerms]) -> Reply:
    """Set the credit limit and the alert threshold."""

    def show(wallet: Wallet, _: Books, position: int) -> View:
        return wallet_view(wallet, call.place(position))

    command = SetWalletTerms(
        organization_id=call.path["organization_id"],
        credit_limit_micros=call.body.credit_limit_micros,
        alert_below_micros=call.body.alert_below_micros,
    )
    return await carry_out(call, command, show)


@operation(
    "POST",
    f"{_PATH}/credits",
    tag=_TAG,
    summary="Top up a wallet, or adjust it",
    description="A reference counts once, for ever; the same reference with another amount is refused.",
    permissions=_WRITE,
    body=NewCredit,
    status=201,
    answer=CreditedView,
    codes=("not_found", "platform_only", "idempotency_conflict", "amount_out_of_range"),
    idempotent=True,
    example={"amount_micros": 25_000_000, "reference": "invoice-2026-0042"},
)
async def add_credits(call: Call[Any, NewCredit]) -> Reply:
    """Top up a wallet, or adjust it (a negative amount)."""

    def show(outcome: DepositOutcome, _: Books, position: int) -> View:
        event = outcome.event
        credit = CreditView(
            amount_micros=event.amount_micros,
            reference=event.reference,
            balance_micros=event.balance_micros,
            at=to_text(event.at),
            position=call.place(outcome.position),
        )
        return CreditedView(
            credit=credit,
            wallet=wallet_view(outcome.wallet, call.place(position)),
            replayed=outcome.replayed,
            position=call.place(outcome.position),
        )

    command = DepositCredits(
        organization_id=call.path["organization_id"],
        amount_micros=call.body.amount_micros,
        reference=call.body.reference,
        reason=call.body.reason,
    )
    return await carry_out(call, command, show, status=201)


@operation(
    "GET",
    f"{_PATH}/statement",
    operation_id="listWalletStatement",
    tag=_TAG,
    summary="List a wallet's movements",
    description="Every line has its position and the balance after it.",
    permissions=_READ,
    query=ListLines,
    answer=StatementView,
    codes=("not_found",),
)
async def get_statement(call: Call[ListLines, Any]) -> Reply:
    """One page of the statement; it includes every write that was answered before."""
    organization = find_organization(call.desk, call.path["organization_id"])
    head = call.ledger.head
    page = await read_page(
        list_statement(
            call.reader.events,
            organization.id,
            newest_first=call.query.sort == "-at",
            limit=call.query.limit,
            cursor=cursor_of(call),
        )
    )
    view = StatementView(
        items=[_line_view(call, line) for line in page.lines],
        next_cursor=next_cursor_of(call, page.next_cursor),
        position=call.place(head),
    )
    return Reply(view, position=head)


def _line_view(call: Call[Any, Any], line: StatementLine) -> StatementLineView:
    fields: dict[str, Any] = msgspec.structs.asdict(line)
    fields |= {"position": call.place(line.position), "at": to_text(line.at)}
    return StatementLineView(**fields)


ROUTES = [get_wallet, update_wallet, add_credits, get_statement]
