"""The bodies of verifies, charges, reservations and refunds."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated

import msgspec

from domain.errors import InvalidError
from keyledger_language import NO_USE, Tenant, Use
from services.api.asking.fields import NOT_KEPT, Metadata, Reason, Secret

MAX_MICROS = 2**63 - 1
MAX_SECRET_LENGTH = 512
"""Longer than any keyspace's shape: a longer secret is malformed, not a bad request."""
MAX_BATCH = 1_000
_MAX_PERMISSIONS = 100

Micros = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROS)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Looked = Annotated[str, msgspec.Meta(min_length=1, max_length=255, extra={NOT_KEPT: True})]
"""An id by which something is looked up."""
Seconds = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]


class StrictBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The base of all bodies: unknown fields are refused."""


class TenantBody(StrictBody, kw_only=True):
    """Whose work the use is, inside the customer's own product."""

    org_id: Text | None = None
    """The customer's own customer."""
    user_id: Text | None = None
    """The user."""


class UseBody(StrictBody, kw_only=True):
    """What a key is to be used for."""

    model: Text | None = None
    """The model that it calls."""
    provider: Text | None = None
    """The provider that it goes to."""
    project_id: Text | None = None
    """The project that it is for."""
    tenant: TenantBody | None = None
    """Whose work it is, inside the customer's own product."""
    metadata: Metadata | None = None


class VerifyBody(UseBody, kw_only=True):
    """A secret, and the use to check it against."""

    secret: Secret
    """The secret that the client sent."""
    keyspace_id: Looked | None = None
    """The keyspace that it is of; not needed if the root key is bound to one."""
    permissions: tuple[Text, ...] | None = None
    """Permissions that the use needs; if absent, they are not checked, unless the keyspace requires it."""
    ip: str | None = None
    """The address that the use came from; a key with `allowed_ips` is denied without one."""
    cost_micros: Micros | None = None
    """Also charge this base price, in micros, in the same decision."""
    reserve_micros: Micros | None = None
    """Also hold this base price, in micros, in the same decision; not together with a cost."""
    request_id: Text | None = None
    """Your own id of the use: it counts once. Required if money moves."""


class VerifyBatchBody(StrictBody, kw_only=True):
    """Many secrets and uses, answered in order, each on its own."""

    items: Annotated[list[VerifyBody], msgspec.Meta(max_length=MAX_BATCH)]
    """The secrets and uses, at most 1,000."""


class ExplainBody(UseBody, kw_only=True):
    """A use to be explained, of a key by its secret or its id."""

    secret: Secret | None = None
    """The secret; or send the key's id."""
    key_id: Looked | None = None
    """The key's id; or send its secret."""
    keyspace_id: Looked | None = None
    """The keyspace that the secret is of; not needed if the root key is bound to one."""
    permissions: tuple[Text, ...] | None = None
    """Permissions that the use needs; if absent, they are not checked, unless the keyspace requires it."""
    ip: str | None = None
    """The address that the use came from; a key with `allowed_ips` is denied without one."""
    cost_micros: Micros | None = None
    """Explain a use that costs this base price, in micros."""
    reserve_micros: Micros | None = None
    """Explain a use that holds this base price, in micros."""
    as_of: str | int | None = None
    """Reserved: only a use as of now can be explained so far."""


class MeteringBody(UseBody, kw_only=True):
    """A use that costs money, of a key by its secret or its id."""

    secret: Secret | None = None
    """The secret that the client sent; or send the key's id."""
    key_id: Looked | None = None
    """The key's id; or send its secret."""
    keyspace_id: Looked | None = None
    """The keyspace that the secret is of; not needed if the root key is bound to one."""
    permissions: tuple[Text, ...] | None = None
    """Permissions that the use needs; if absent, they are not checked, unless the keyspace requires it."""
    ip: str | None = None
    """The address that the use came from; a key with `allowed_ips` is charged only for one of these."""
    request_id: Text
    """Your own id of the use: it counts once, for ever, within the organization."""
    amount_micros: Micros
    """The base price, in micros; the plan's multiplier is applied to it."""


class ChargeBody(MeteringBody, kw_only=True):
    """Charge one use."""


class ChargeBatchBody(StrictBody, kw_only=True):
    """Many charges, each on its own, answered in order."""

    items: Annotated[list[ChargeBody], msgspec.Meta(max_length=MAX_BATCH)]
    """The charges, at most 1,000."""


class ReserveBody(MeteringBody, kw_only=True):
    """Hold money for a use whose price is not known yet."""

    expires_in_seconds: Seconds = 600
    """After how many seconds it gives back what it still holds."""


class RefundBody(StrictBody, kw_only=True):
    """Refund a charge, in part or (without an amount) whole."""

    request_id: Text
    """Your own id of the refund: it counts once."""
    amount_micros: Micros | None = None
    """How much to give back, in micros; null: all that was not given back yet."""


class CaptureBody(StrictBody, kw_only=True):
    """Turn held money, or part of it, into a charge."""

    request_id: Text
    """Your own id of the capture: it counts once."""
    amount_micros: Micros
    """The base price, in micros; the reservation's price multiplier is applied to it."""
    final: bool = True
    """Release what is still held after it; false: more captures follow."""


class ReleaseBody(StrictBody, kw_only=True):
    """Release what is still held."""

    request_id: Text | None = None
    """Your own id of the release."""


class RevokeSelfBody(StrictBody, kw_only=True):
    """Revoke the key whose secret the request carries."""

    reason: Reason | None = None
    """Why, for the audit."""


def use_of(body: UseBody, permissions: tuple[str, ...] | None, ip: str | None) -> Use:
    """The use that a body describes."""
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
        raise InvalidError("permissions", f"at most {_MAX_PERMISSIONS} are allowed")
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


@lru_cache(maxsize=4096)  # parsing one takes longer than judging the key
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
