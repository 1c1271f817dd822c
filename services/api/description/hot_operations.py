"""The hot paths as the API description tells of them; they are answered in `services/api/resources`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from domain.commands import UNSET, UnsetType
from keyledger_edge import VerifyAnswer
from services.api.answering.views import Micros, Position, Time, View
from services.api.asking.uses import (
    CaptureBody,
    ChargeBatchBody,
    ChargeBody,
    ExplainBody,
    RefundBody,
    ReleaseBody,
    ReserveBody,
    RevokeSelfBody,
    VerifyBatchBody,
    VerifyBody,
)
from services.api.operations import Operation, Query
from services.api.resources.requests import TenantView
from services.ledger.fence import FenceResult

_VERDICTS: Final = (
    "malformed", "not_found", "revoked", "expired", "rotated", "disabled", "organization_suspended",
    "ip_denied", "permission_denied", "project_denied", "model_denied", "tenant_denied",
)  # fmt: skip
_MONEY: Final = (
    "api_key_quota_exceeded", "project_quota_exceeded", "organization_quota_exceeded", "billing_shortfall",
    "idempotency_conflict",
)  # fmt: skip
_PROXY: Final = ("proxy_unauthenticated", "missing", "ambiguous_credentials", "rate_limited")
_SHOWN: Final = "acme_live_..."


class ChargeView(View, frozen=True, kw_only=True):
    """One metered use that costs money, final."""

    id: str
    key_id: str
    organization_id: str
    request_id: str
    base_micros: Micros
    price_multiplier: str
    amount_micros: Micros
    model: str | None
    provider: str | None
    project_id: str | None
    tenant: TenantView | None
    charged_at: Time
    position: Position | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    reservation_id: str | UnsetType = UNSET
    """Of a capture."""
    uncovered_micros: Micros | UnsetType = UNSET
    """Of a capture: what limits did not allow."""
    refunded_micros: Micros | UnsetType = UNSET
    """All that was given back of it so far."""


class RefundView(View, frozen=True, kw_only=True):
    """A compensating entry for a charge, or part of it."""

    charge_id: str
    key_id: str
    organization_id: str
    request_id: str
    amount_micros: Micros
    refunded_micros: Micros
    """All refunds of that charge together, this one included."""
    refunded_at: Time
    position: Position


class ReservationView(View, frozen=True, kw_only=True):
    """Money held for a use whose price is not known yet."""

    id: str
    key_id: str
    organization_id: str
    request_id: str
    status: Literal["open", "captured", "released", "expired"]
    base_micros: Micros
    price_multiplier: str
    amount_micros: Micros
    held_micros: Micros
    captured_micros: Micros
    uncovered_micros: Micros
    model: str | None
    provider: str | None
    project_id: str | None
    tenant: TenantView | None
    reserved_at: Time
    expires_at: Time
    position: Position
    metadata: dict[str, Any] | UnsetType = UNSET


class WalletLeftView(View, frozen=True, kw_only=True):
    """The wallet right after it."""

    organization_id: str
    currency: str
    balance_micros: Micros
    reserved_micros: Micros
    available_micros: Micros
    credit_limit_micros: Micros | None
    alert_below_micros: Micros | None


class QuotaLeftView(View, frozen=True, kw_only=True):
    """A quota that the use was checked against, right after it."""

    level: Literal["key", "project", "organization"]
    subject_id: str
    unit: Literal["micros", "requests"]
    window: Literal["day", "week", "month", "total"]
    limit: int
    alert_percents: list[int]
    spent: int
    remaining: int
    resets_at: Time | None


class _MeteredView(View, frozen=True, kw_only=True):
    """What every answer about money has."""

    replayed: bool
    """Was this request id carried out before? It counted then."""
    quotas: list[QuotaLeftView]
    wallet: WalletLeftView | None
    position: Position


class ChargedView(_MeteredView, frozen=True, kw_only=True):
    """What became of a charge."""

    charge: ChargeView


class RefundedView(_MeteredView, frozen=True, kw_only=True):
    """What became of a refund."""

    refund: RefundView
    charge: ChargeView


class ReservedView(_MeteredView, frozen=True, kw_only=True):
    """What became of a reservation."""

    reservation: ReservationView


class CapturedView(_MeteredView, frozen=True, kw_only=True):
    """What became of a capture."""

    charge: ChargeView
    reservation: ReservationView
    uncovered_micros: Micros


class ReleasedView(_MeteredView, frozen=True, kw_only=True):
    """What became of a release."""

    reservation: ReservationView
    released_micros: Micros


class HeldView(View, frozen=True, kw_only=True):
    """A reservation as it stands."""

    reservation: ReservationView
    position: Position


class ResultsView(View, frozen=True, kw_only=True):
    """Outcomes in the order of the items."""

    results: list[dict[str, Any]]
    position: Position


class SelfView(View, frozen=True, kw_only=True):
    """What an ordinary key is, and what is left."""

    key: dict[str, Any]
    key_id: str
    organization_id: str
    code: str
    """The verdict on it right now."""
    quotas: list[QuotaLeftView]
    wallet: dict[str, Any] | None
    wallet_available_micros: Micros | None
    rate_limits: list[dict[str, Any]]
    position: Position


class RevokedSelfView(View, frozen=True, kw_only=True):
    """A key that its holder has killed."""

    key: dict[str, Any]
    position: Position
    fence: FenceResult | UnsetType = UNSET


class ForwardAuthQuery(Query, frozen=True, kw_only=True):
    """Whose keys, and for which proxy; a query that a client sent belongs into the forwarded URI."""

    keyspace_id: str | None = None
    proxy: Annotated[str, msgspec.Meta(examples=["nginx"])] | None = None


class SelfQuery(Query, frozen=True, kw_only=True):
    """Whose secret it is; it may also stand where the keyspace takes secrets in a query."""

    keyspace_id: str | None = None


class RevokeSelfQuery(SelfQuery, frozen=True, kw_only=True):
    """The same, and whether to wait."""

    fence: bool = True
    """Answer once no edge can accept the key any more; false: 202 right after the commit."""


OPERATIONS: Final = (
    Operation(
        method="POST", path="/v1/verify", tag="Verify", summary="Is this secret good for this use?",
        description="200 whenever the question was well formed: `valid` and `code` are the answer.",
        permissions=("verify",), body=VerifyBody, answer=VerifyAnswer, secrets=True, codes=("not_found",),
        example={"secret": _SHOWN, "model": "gpt-5"},
    ),
    Operation(
        method="POST", path="/v1/verify/batch", tag="Verify", summary="Check many secrets",
        permissions=("verify",), body=VerifyBatchBody, answer=ResultsView, secrets=True,
    ),
    Operation(
        method="GET", path="/v1/forward-auth", tag="Verify", summary="The same for proxies",
        description=(
            "Any method. Traefik ForwardAuth and Envoy ext_authz over HTTP; `proxy=nginx` for nginx "
            "`auth_request`. The proxy shows a root key with `verify` in `X-Keyledger-Proxy-Key`."
        ),
        query=ForwardAuthQuery, answer=None,
        codes=(*_PROXY, *_VERDICTS, *_MONEY),
    ),
    Operation(
        method="GET", path="/v1/forward-auth/{path}", tag="Verify",
        summary="The same for proxies that append the original path",
        query=ForwardAuthQuery, answer=None,
        codes=(*_PROXY, *_VERDICTS, *_MONEY),
    ),
    Operation(
        method="POST", path="/v1/charges", tag="Charges", summary="Charge one use",
        description="A `request_id` counts once, for ever: the same again gets the first outcome.",
        permissions=("charges:write",), body=ChargeBody, status=201, answer=ChargedView, secrets=True,
        codes=(*_VERDICTS, *_MONEY), idempotent=False,
        example={"key_id": "key_01JD0000000000000000000000", "request_id": "r-1", "amount_micros": 1_500},
    ),
    Operation(
        method="POST", path="/v1/charges/batch", tag="Charges", summary="Charge many uses, each on its own",
        permissions=("charges:write",), body=ChargeBatchBody, answer=ResultsView, secrets=True,
    ),
    Operation(
        method="POST", path="/v1/charges/{charge_id}/refund", tag="Charges",
        summary="Give a charge back, in part or whole", permissions=("charges:write",), body=RefundBody,
        status=201, answer=RefundedView,
        codes=("not_found", "refund_exceeds_charge", "idempotency_conflict"),
        example={"request_id": "refund-1", "amount_micros": 500},
    ),
    Operation(
        method="POST", path="/v1/reservations", tag="Reservations",
        summary="Hold money for a use whose price is not known yet",
        permissions=("charges:write",), body=ReserveBody, status=201, answer=ReservedView, secrets=True,
        codes=(*_VERDICTS, *_MONEY),
        example={
            "key_id": "key_01JD0000000000000000000000", "request_id": "r-2", "amount_micros": 40_000,
            "expires_in_seconds": 600,
        },
    ),
    Operation(
        method="GET", path="/v1/reservations/{reservation_id}", tag="Reservations",
        summary="Show a reservation", permissions=("charges:write", "usage:read"),
        answer=HeldView, codes=("not_found",),
    ),
    Operation(
        method="POST", path="/v1/reservations/{reservation_id}/capture", tag="Reservations",
        summary="Turn what is held, or part of it, into a charge", permissions=("charges:write",),
        body=CaptureBody, status=201, answer=CapturedView,
        codes=("not_found", "reservation_closed", *_MONEY),
        example={"request_id": "r-2-capture", "amount_micros": 31_000, "final": True},
    ),
    Operation(
        method="POST", path="/v1/reservations/{reservation_id}/release", tag="Reservations",
        summary="Give back what is still held", permissions=("charges:write",), body=ReleaseBody,
        answer=ReleasedView, codes=("not_found", "reservation_closed"),
    ),
    Operation(
        method="GET", path="/v1/self", tag="Self", summary="What is my key, and what is left?",
        description="With an ordinary key's own secret, where its keyspace expects it. Free: counts nowhere.",
        query=SelfQuery, answer=SelfView, codes=("unauthenticated",),
    ),
    Operation(
        method="POST", path="/v1/self/revoke", tag="Self", summary="Kill my key",
        description="Whoever holds a secret may kill its key.",
        query=RevokeSelfQuery, body=RevokeSelfBody, answer=RevokedSelfView,
        codes=("unauthenticated",),
    ),
    Operation(
        method="POST", path="/v1/explain", tag="Verify", summary="Why would a use be allowed or refused?",
        description="Each rule with its figures.", permissions=("verify",), body=ExplainBody,
        answer=dict[str, Any], secrets=True, codes=("not_found",),
    ),
)  # fmt: skip
