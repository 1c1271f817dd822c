"""`GET /v1/self` and `POST /v1/self/revoke`: what a key's holder may see and do with its own secret."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs

from domain.commands import Asking, RevokeSelf
from domain.errors import LedgerError
from domain.events import Origin
from domain.ids import format_position
from domain.keys import Key
from domain.quotas import quota_states
from keyledger_edge import (
    MALFORMED,
    MISSING,
    NOT_FOUND,
    STATUS_OF_CODE,
    BadRequestError,
    KeyFacts,
    Verdict,
    find_secret,
    fingerprint,
    ip_allowed,
    read_headers,
    state_of,
)
from services.api.answering.answers import Answer, json_answer, problem_answer, wire
from services.api.answering.fencing import fence_at, outlast_fences
from services.api.answering.money import quota_views, rate_views
from services.api.answering.problems import TABLE, ProblemError, challenge, invalid, problem_body
from services.api.answering.views import key_view
from services.api.asking.requests import HotRequest
from services.api.asking.secrets import SecretWatch
from services.api.asking.traces import user_agent_of
from services.api.asking.uses import MAX_SECRET_LENGTH, read_revoke_self
from services.api.resources.checking import Checker, view_of_keyspace
from services.ledger.ledger import Ledger

_UNAUTHORIZED = 401


class _Shown(NamedTuple):
    """A secret that the request shows, and whose it is."""

    secret: str
    facts: KeyFacts


class SelfService:
    """Free: counts against no limit."""

    def __init__(self, ledger: Ledger, checker: Checker, watch: SecretWatch) -> None:
        self._ledger = ledger
        self._checker = checker
        self._watch = watch

    async def show(self, request: HotRequest) -> Answer:
        """What the key is, and what is left of it."""
        ledger = self._ledger
        if not ledger.confirmed:
            ledger.must_own()
        shown = self._shown(request)
        if not isinstance(shown, _Shown):
            return _refused(shown, request.request_id)
        facts, now = shown.facts, max(ledger.clock.now(), ledger.state.at)
        code = state_of(facts, now)
        if code is None and facts.allowed_ips and not ip_allowed(facts.allowed_ips, request.peer):
            code = "ip_denied"
        if code is not None:
            return _refused(code, request.request_id)
        return json_answer(200, self._view(ledger.state.keys[facts.key_id], facts, now))

    def _view(self, key: Key, facts: KeyFacts, now: int) -> dict[str, Any]:
        ledger = self._ledger
        state = ledger.state
        view = key_view(key, state, now, ledger.last_used_at(key.id), ledger.position_prefix)
        told = {name: getattr(view, name) for name in view.__struct_fields__ if name not in _PLATFORMS_OWN}
        wallet = state.wallets.get(key.organization_id or "")
        rates = ledger.limiter.peek(key.id, facts.rate_limits, None) if facts.rate_limits else ()
        return {
            "key": told,
            "key_id": key.id,
            "organization_id": key.organization_id,
            "code": "valid",
            "quotas": quota_views(quota_states(state, key, now)),
            "wallet": None
            if wallet is None
            else {"currency": wallet.currency, "available_micros": wallet.balance - wallet.reserved},
            "wallet_available_micros": None if wallet is None else wallet.balance - wallet.reserved,
            "rate_limits": rate_views(rates),
            "position": format_position(ledger.position_prefix, state.head),
        }

    async def revoke(self, request: HotRequest) -> Answer:
        """Whoever holds the secret may kill the key; answers once no edge accepts it any more."""
        wait = _wants_fence(request)
        body = read_revoke_self(request.body)
        self._watch.refuse(body.reason, "reason")
        shown = self._shown(request)
        if not isinstance(shown, _Shown):
            return _refused(shown, request.request_id)
        ledger = self._ledger
        key_id = shown.facts.key_id
        user_agent = user_agent_of(request.scope["headers"], self._watch.redactor)
        origin = Origin(ip=request.peer, user_agent=user_agent, request_id=request.request_id)
        asking = Asking(actor=key_id, organization_id=shown.facts.organization_id, origin=origin)
        command = RevokeSelf(fingerprint=fingerprint(shown.secret), reason=body.reason)
        try:
            done = await ledger.execute(command, asking)
        except LedgerError as refusal:
            if wait:
                await outlast_fences(ledger, refusal)
            raise
        now = max(ledger.clock.now(), ledger.state.at)
        told = self._view(ledger.state.keys[key_id], shown.facts, now)
        assert done.fence_position is not None, "whoever revokes, is told of a fence"
        fence = await fence_at(ledger, done.fence_position, wait=wait)
        answer: dict[str, Any] = {
            "key": told["key"],
            "position": format_position(ledger.position_prefix, done.position),
            "fence": fence,
        }
        return json_answer(200 if fence.held and wait else 202, answer)

    # -- finding the secret

    def _shown(self, request: HotRequest) -> _Shown | str:
        """The one secret that the request shows in any keyspace's manner, or the code of what is wrong.

        Every keyspace's shape is tried at the places where that keyspace takes secrets; of one alone,
        when the request names it.
        """
        headers = read_headers(request.scope["headers"])
        query: bytes = request.scope["query_string"]
        parameters = parse_qs(query.decode("latin-1"), max_num_fields=100) if query else {}
        found: dict[str, _Shown | str] = {}
        something = False
        only = parameters.get("keyspace_id")
        for keyspace in self._ledger.state.keyspaces.values():
            if keyspace.builtin or (only is not None and keyspace.id not in only):
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
            facts = self._checker.find(secret, keyspace, None)
            if not isinstance(facts, Verdict):
                found[secret] = _Shown(secret, facts)
            elif not isinstance(found.get(secret), _Shown):
                found[secret] = NOT_FOUND if facts.code == NOT_FOUND else found.get(secret, MALFORMED)
        if len(found) > 1:
            raise ProblemError("ambiguous_credentials", "The request shows two different secrets; show one.")
        if found:
            return next(iter(found.values()))
        return MALFORMED if something else MISSING


_PLATFORMS_OWN = frozenset({"metadata", "tags", "created_by", "bound_keyspace_id", "imported", "deleted"})
"""What the platform or the customer's administrators noted about the key is not its holder's to read."""


def _wants_fence(request: HotRequest) -> bool:
    query: bytes = request.scope["query_string"]
    values = parse_qs(query.decode("latin-1")).get("fence", ["true"])
    if values[-1] not in ("true", "false"):
        raise invalid("fence", "true or false")
    return values[-1] == "true"


def _refused(code: str, request_id: str) -> Answer:
    status = STATUS_OF_CODE[code]
    title = TABLE[code].title if code != NOT_FOUND else "There is no such key"
    headers = wire(challenge(None if code == MISSING else "invalid_token")) if status == _UNAUTHORIZED else []
    return problem_answer(problem_body(code, f"{title}.", request_id, status=status), status, code, headers)
