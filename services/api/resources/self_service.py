"""`GET /v1/self` and `POST /v1/self/revoke`: what a key's holder can see and do with the key's own secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from domain.commands import UNSET, Asking, RevokeSelf, UnsetType
from domain.keys import Key
from domain.quotas import quota_states
from domain.state import Books
from keyledger_edge import BadRequestError, find_secret, read_headers
from keyledger_language import (
    IP_DENIED,
    MALFORMED,
    MISSING,
    NOT_FOUND,
    STATUS_OF_CODE,
    VALID,
    KeyFacts,
    RateLimitAnswer,
    Verdict,
    fingerprint,
    judge_key,
)
from keyledger_language.events import Origin
from services.api.answering.fencing import fence_of
from services.api.answering.keys import OwnKeyView, key_view
from services.api.answering.money import rate_views
from services.api.answering.problems import TABLE, ProblemError, challenge
from services.api.answering.quotas import QuotaView, quota_figures
from services.api.answering.views import Micros, Position, VerdictCode, View
from services.api.asking.call import Call
from services.api.asking.traces import user_agent_of
from services.api.asking.uses import MAX_SECRET_LENGTH, RevokeSelfBody
from services.api.operations import Query, Reply, operation
from services.api.resources.checking import view_of_keyspace
from services.ledger.fence_results import FenceResult

_TAG: Final = "Self"
_UNAUTHORIZED: Final = 401
_REFUSALS: Final = (
    MISSING, MALFORMED, NOT_FOUND, "revoked", "expired", "rotated", "disabled", "organization_suspended",
    IP_DENIED, "ambiguous_credentials",
)  # fmt: skip


class SelfQuery(Query, frozen=True, kw_only=True):
    """Which keyspace the secret is of; a query may also carry the secret, if the keyspace takes it there."""

    keyspace_id: str | None = None
    """The keyspace that the secret is of; not needed if only one keyspace expects a secret there."""


class RevokeSelfQuery(SelfQuery, frozen=True, kw_only=True):
    """Which keyspace the secret is of, and whether to wait."""

    fence: bool = True
    """Answer once no edge can accept the key any more; false: 202 right after the commit."""


class WalletLeft(View, frozen=True, kw_only=True):
    """What is left in the organization's wallet."""

    currency: str
    """A currency, or the name of a credit unit."""
    available_micros: Micros
    """What can be spent now, in micros, before any credit."""


class SelfView(View, frozen=True, kw_only=True):
    """An ordinary key, and what is left of its limits."""

    key: OwnKeyView
    """The key, as its holder may see it."""
    key_id: str
    """The key's id."""
    organization_id: str | None
    """The customer; null for a key without one."""
    code: VerdictCode
    """The present verdict on it."""
    quotas: list[QuotaView]
    """All quotas that a use of it is checked against."""
    wallet: WalletLeft | None
    """What is left in the customer's wallet; null for a key without an organization."""
    wallet_available_micros: Micros | None
    """The same as `wallet.available_micros`; null for a key without an organization."""
    rate_limits: list[RateLimitAnswer]
    """What is left of each rate limit; this request counts against none."""
    position: Position


class RevokedSelfView(View, frozen=True, kw_only=True):
    """A key that its holder has revoked."""

    key: OwnKeyView
    """The key, as its holder may see it."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away: whether no edge can accept it any more."""


class _Shown(NamedTuple):
    """A secret in the request, and the facts of its key."""

    secret: str
    facts: KeyFacts


def _where_secrets_stand(books: Books) -> Callable[[str], bool]:
    """The query parameters in which some keyspace takes secrets; they are not refused as unknown."""
    taken = {
        location.removeprefix("query:")
        for keyspace in books.keyspaces.values()
        if not keyspace.archived
        for location in keyspace.credential_locations
        if location.startswith("query:")
    }
    return taken.__contains__


@operation(
    "GET",
    "/v1/self",
    tag=_TAG,
    summary="Show my key and what is left",
    description=(
        "With an ordinary key's own secret, where its keyspace expects it. Free: counts against no limit."
    ),
    query=SelfQuery,
    other_parameters=_where_secrets_stand,
    answer=SelfView,
    codes=_REFUSALS,
)
async def get_self(call: Call[SelfQuery, Any]) -> Reply:
    """Show the key, and what is left of its limits."""
    ledger = call.ledger
    if not ledger.confirmed:
        ledger.must_own()
    facts, now = _shown(call).facts, call.now
    code = judge_key(facts, call.peer, now)
    if code != VALID:
        raise _refused(code)
    books = call.books
    key = books.keys[facts.key_id]
    wallet = books.wallets.get(key.organization_id or "")
    available = None if wallet is None else wallet.balance - wallet.reserved
    rates = ledger.limiter.peek(key.id, facts.rate_limits, None) if facts.rate_limits else ()
    view = SelfView(
        key=_own_view(call, key, now),
        key_id=key.id,
        organization_id=key.organization_id,
        code="valid",
        quotas=quota_figures(quota_states(books, key, now)),
        wallet=None
        if wallet is None
        else WalletLeft(currency=wallet.currency, available_micros=wallet.balance - wallet.reserved),
        wallet_available_micros=available,
        rate_limits=rate_views(rates),
        position=call.place(books.head),
    )
    return Reply(view, position=books.head)


@operation(
    "POST",
    "/v1/self/revoke",
    tag=_TAG,
    summary="Revoke my key",
    description="The holder of a secret may revoke its key. Answers once no edge accepts it any more.",
    query=RevokeSelfQuery,
    other_parameters=_where_secrets_stand,
    body=RevokeSelfBody,
    answer=RevokedSelfView,
    codes=_REFUSALS,
    instead_of_a_key="a key is revoked once, for good",
    example={"reason": "posted by mistake"},
)
async def revoke_self(call: Call[RevokeSelfQuery, RevokeSelfBody]) -> Reply:
    """Revoke the key whose secret the request carries."""
    ledger, wait = call.ledger, call.query.fence
    shown = _shown(call)
    key_id = shown.facts.key_id
    user_agent = user_agent_of(call.scope["headers"], call.api.redactor)
    origin = Origin(ip=call.peer, user_agent=user_agent, request_id=call.request_id)
    asking = Asking(actor=key_id, organization_id=shown.facts.organization_id, origin=origin)
    command = RevokeSelf(fingerprint=fingerprint(shown.secret), reason=call.body.reason)
    done = await ledger.execute(command, asking)
    key = _own_view(call, call.books.keys[key_id], call.now)
    fence = await fence_of(ledger, done, wait=wait)
    view = RevokedSelfView(key=key, position=call.place(done.position), fence=fence)
    return Reply(view, 200 if fence.held and wait else 202, position=done.position)


def _own_view(call: Call[Any, Any], key: Key, now: int) -> OwnKeyView:
    """The key without the notes of the platform and administrators, which its holder must not read."""
    view = key_view(key, call.books, now, call.ledger.last_used_at(key.id), call.prefix)
    return OwnKeyView(**{name: getattr(view, name) for name in OwnKeyView.__struct_fields__})


def _shown(call: Call[Any, Any]) -> _Shown:
    """The one secret that the request shows where any keyspace takes secrets. Raises what is wrong with it.

    Every keyspace is tried, with its shape and its places of secrets; if the request names a keyspace,
    only that one.
    """
    headers = read_headers(call.scope["headers"])
    query: bytes = call.scope["query_string"]
    parameters = parse_qs(query.decode("latin-1"), max_num_fields=100) if query else {}
    found: dict[str, _Shown | str] = {}
    something = False
    only = parameters.get("keyspace_id")
    for keyspace in call.books.keyspaces.values():
        if keyspace.builtin or keyspace.archived or (only is not None and keyspace.id not in only):
            continue
        try:
            secret = find_secret(headers, parameters, view_of_keyspace(keyspace))
        except BadRequestError as error:
            raise ProblemError(error.code, str(error)) from None
        if secret is None:
            continue
        something = True
        if len(secret) > MAX_SECRET_LENGTH or not keyspace.shape.looks_right(secret):
            continue
        facts = call.api.checker.find(secret, keyspace, None)
        if not isinstance(facts, Verdict):
            found[secret] = _Shown(secret, facts)
        elif not isinstance(found.get(secret), _Shown):
            found[secret] = NOT_FOUND if facts.code == NOT_FOUND else found.get(secret, MALFORMED)
    if len(found) > 1:
        raise ProblemError("ambiguous_credentials", "The request has two different secrets; send one.")
    only_one = next(iter(found.values()), MALFORMED if something else MISSING)
    if isinstance(only_one, _Shown):
        return only_one
    raise _refused(only_one)


def _refused(code: str) -> ProblemError:
    status = STATUS_OF_CODE[code]
    title = TABLE[code].title if code != NOT_FOUND else "There is no such key"
    headers = challenge(None if code == MISSING else "invalid_token") if status == _UNAUTHORIZED else {}
    return ProblemError(code, f"{title}.", status=status, headers=headers)


ROUTES = [get_self, revoke_self]
