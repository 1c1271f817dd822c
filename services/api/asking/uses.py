"""What verifies, charges and their like are sent."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated

import msgspec

from domain.errors import InvalidError
from keyledger_edge import NO_USE, Tenant, Use
from services.api.asking.fields import NOT_KEPT, Metadata, Secret

MAX_MICROS = 2**63 - 1
MAX_SECRET_LENGTH = 512
"""Longer than any keyspace's shape: such a secret is malformed, not a bad request."""
MAX_BATCH = 1_000
_MAX_PERMISSIONS = 100

Micros = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROS)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Looked = Annotated[str, msgspec.Meta(min_length=1, max_length=255, extra={NOT_KEPT: True})]
"""An id by which something is looked up."""
Seconds = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every body is: unknown fields are refused."""


class TenantBody(Body, kw_only=True):
    """Whose work the use is, inside the customer's own product."""

    org_id: Text | None = None
    user_id: Text | None = None


class UseBody(Body, kw_only=True):
    """What somebody wants to do with a key."""

    model: Text | None = None
    provider: Text | None = None
    project_id: Text | None = None
    tenant: TenantBody | None = None
    metadata: Metadata | None = None


class VerifyBody(UseBody, kw_only=True):
    """Is this secret good for this use?"""

    secret: Secret
    keyspace_id: Looked | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    cost_micros: Micros | None = None
    reserve_micros: Micros | None = None
    request_id: Text | None = None


class VerifyBatchBody(Body, kw_only=True):
    """Many questions, answered in order, each on its own."""

    items: Annotated[list[VerifyBody], msgspec.Meta(max_length=MAX_BATCH)]


class ExplainBody(UseBody, kw_only=True):
    """Why would this use be allowed or refused?"""

    secret: Secret | None = None
    key_id: Looked | None = None
    keyspace_id: Looked | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    cost_micros: Micros | None = None
    reserve_micros: Micros | None = None
    as_of: str | int | None = None


class MeteringBody(UseBody, kw_only=True):
    """A use that costs money, of a key by its secret or its id."""

    secret: Secret | None = None
    key_id: Looked | None = None
    keyspace_id: Looked | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    """Where the use came from: a key with `allowed_ips` is charged for no other."""
    request_id: Text
    amount_micros: Micros


class ChargeBody(MeteringBody, kw_only=True):
    """Spend money on one request."""


class ChargeBatchBody(Body, kw_only=True):
    """Many charges, each on its own, answered in order."""

    items: Annotated[list[ChargeBody], msgspec.Meta(max_length=MAX_BATCH)]


class ReserveBody(MeteringBody, kw_only=True):
    """Hold money for a use whose price is not known yet."""

    expires_in_seconds: Seconds = 600


class RefundBody(Body, kw_only=True):
    """Give back a charge, in part or (without an amount) whole."""

    request_id: Text
    amount_micros: Micros | None = None


class CaptureBody(Body, kw_only=True):
    """Turn what is held, or part of it, into a charge."""

    request_id: Text
    amount_micros: Micros
    final: bool = True


class ReleaseBody(Body, kw_only=True):
    """Give back what is still held."""

    request_id: Text | None = None


class RevokeSelfBody(Body, kw_only=True):
    """Whoever holds a secret may kill its key."""

    reason: Annotated[str, msgspec.Meta(max_length=1_000)] | None = None


def use_of(body: UseBody, permissions: tuple[str, ...] | None, ip: str | None) -> Use:
    """What a body asks to do."""
    tenant = body.tenant
    if (
        permissions is None
        and ip is None
        and tenant is None
        and body.model is None
        and body.project_id is None
        and body.provider is None
    ):
        return NO_USE
    if permissions is not None and len(permissions) > _MAX_PERMISSIONS:
        raise InvalidError("permissions", f"at most {_MAX_PERMISSIONS}")
    if ip is not None:
        _check_ip(ip)
    return Use(
        permissions=permissions or (),
        project_id=body.project_id,
        model=body.model,
        provider=body.provider,
        tenant=None if tenant is None else Tenant(org_id=tenant.org_id, user_id=tenant.user_id),
        ip=ip,
    )


def _check_ip(ip: str) -> None:
    if not _is_address(ip):
        raise InvalidError("ip", "not an IPv4 or IPv6 address")


@lru_cache(maxsize=4096)  # reading one takes longer than judging the key
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
