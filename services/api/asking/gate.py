"""Who asks: the guard in front of every management route."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from domain.commands import Asking
from domain.events import Origin
from services.api.answering.problems import ProblemError, challenge
from services.api.asking.callers import Caller, Callers
from services.api.asking.traces import Redactor, Trace, client_ip, header, trace_of, user_agent_of
from services.ledger.ledger import Ledger

CALLER: Final = "keyledger.caller"
_SHOW: Final = "Show a root key: Authorization: Bearer kl_root_..."
_REFUSED: Final = {
    "malformed": "This is not a root key.",
    "not_found": "This is not a root key of this ledger.",
    "revoked": "This root key is revoked.",
    "expired": "This root key is expired.",
    "rotated": "This root key's secret was rotated; use its new one.",
    "disabled": "This root key is disabled.",
}
_FORBIDDEN: Final = {
    "organization_suspended": "The organization of this root key is suspended.",
    "ip_denied": "This root key cannot be used from this address.",
}


class Gate:
    """Recognises callers by their root keys and looks at what they may do."""

    def __init__(
        self, ledger: Ledger, callers: Callers, redactor: Redactor, trusted_proxies: tuple[str, ...]
    ) -> None:
        self._ledger = ledger
        self._callers = callers
        self._redactor = redactor
        self._trusted = trusted_proxies

    async def guard(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let in whoever holds what the route asks for; a route that asks for nothing is open."""
        wanted: tuple[str, ...] = handler.opt.get("permissions", ())
        if not wanted:
            return
        scope = connection.scope
        if not may_tell(self._ledger, str(scope.get("method"))):
            # Nobody can be recognised by a state that may be old, or was never read.
            self._ledger.must_own()
        ip = client_ip(scope, self._trusted)
        caller = self._authenticate(header(scope["headers"], b"authorization"), ip)
        trace = trace_of(scope, self._redactor)
        trace.caller_id = caller.key_id
        if caller.permissions.isdisjoint(wanted):
            raise ProblemError(
                "permission_denied",
                f"This needs a root key with {' or '.join(wanted)}.",
                permission=wanted[0],
            )
        scope["state"][CALLER] = (caller, self._asking(caller, scope, trace, ip))

    def _authenticate(self, authorization: str | None, ip: str | None) -> Caller:
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise ProblemError("unauthenticated", _SHOW, headers=challenge())
        caller = self._callers.find(secret.strip().encode("latin-1"), ip)
        if isinstance(caller, Caller):
            return caller
        if caller in _FORBIDDEN:
            raise ProblemError(caller, _FORBIDDEN[caller])
        raise ProblemError(
            "unauthenticated",
            _REFUSED.get(caller, "This root key does not work."),
            headers=challenge("invalid_token"),
        )

    def _asking(self, caller: Caller, scope: Any, trace: Trace, ip: str | None) -> Asking:
        origin = Origin(
            ip=ip,
            user_agent=user_agent_of(scope["headers"], self._redactor),
            request_id=trace.request_id,
        )
        return msgspec.structs.replace(caller.asking, origin=origin)


def may_tell(ledger: Ledger, method: str) -> bool:
    """May a management request be answered from what this process knows?

    It must be sure to own the partition: one that slept may wake up when another has long taken over.
    But without PostgreSQL nobody writes, so what was committed is the truth still; its position says how
    old it is where another process reached PostgreSQL meanwhile. (Verdicts are never given so.) A process
    that has not read the log to its end yet knows less than was committed, and says nothing.
    """
    return ledger.confirmed or (method == "GET" and not ledger.reachable and ledger.caught_up)


def caller_of(scope: Any) -> tuple[Caller, Asking]:
    """Who asks, once the guard has let them in."""
    found: tuple[Caller, Asking] = scope["state"][CALLER]
    return found
