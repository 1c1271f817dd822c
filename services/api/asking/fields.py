"""Fields of requests: their types and bounds, shared by all bodies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from domain.commands import UNSET, NewScopes, UnsetType
from domain.metadata import MAX_METADATA_DEPTH
from domain.money import MAX_MICROS
from keyledger_language import Allowed, RateLimit
from keyledger_language.events import Quota
from keyledger_language.instants import Instant, from_datetime
from services.api.answering.problems import invalid

MAX_METADATA_BYTES: Final = 16_384
METADATA: Final = "is_metadata"
"""Marks a field that holds the caller's own JSON."""
NOT_KEPT: Final = "not_kept"
"""Marks ids that are used for look-ups only."""
CREDENTIAL: Final = "credential"
"""Marks the fields that are meant to contain a secret."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S", examples=["Checkout"])]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
ForeignId = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
"""An id of the caller's own: an owner, an external id."""
Environment = Annotated[str, msgspec.Meta(min_length=1, max_length=100, examples=["production"])]
ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=200, examples=["gpt-5"])]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=50)]
Address = Annotated[str, msgspec.Meta(min_length=2, max_length=64, examples=["203.0.113.0/24"])]
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=200)]
Metadata = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description=(
            f"Your own JSON; at most {MAX_METADATA_BYTES} bytes, nested at most {MAX_METADATA_DEPTH} deep."
        ),
        extra={METADATA: True},
    ),
]
Secret = Annotated[str, msgspec.Meta(extra={CREDENTIAL: True})]
When = Annotated[datetime, msgspec.Meta(tz=True)]
"""RFC 3339, with its zone."""
Amount = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROS)]
SignedAmount = Annotated[int, msgspec.Meta(ge=-MAX_MICROS, le=MAX_MICROS)]
Percent = Annotated[int, msgspec.Meta(ge=1, le=100)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request; unknown fields are refused."""


class NoBody(Body, frozen=True, kw_only=True):
    """No body is needed."""


class QuotaBody(Body, frozen=True, kw_only=True):
    """An amount per window."""

    unit: Literal["micros", "requests"]
    """What is counted: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"]
    """The UTC calendar window in which it counts; `total` never resets."""
    limit: Amount
    """The most in one window, in its unit."""
    alert_percents: Annotated[tuple[Percent, ...], msgspec.Meta(max_length=20)] = ()
    """An event reports when these percentages of the limit are reached."""


class RateLimitBody(Body, frozen=True, kw_only=True):
    """A number of requests per number of seconds; with a provider, only uses that name it count."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100, examples=["burst"])]
    """Your own name of it, unique on the key."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    """The most requests in a window."""
    window_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    """The length of a window."""
    provider: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    """Only uses that name this provider count; null: all."""


class ScopesBody(Body, frozen=True, kw_only=True):
    """What a key may be used for; a dimension left out stays as it was (at creation: `"*"`)."""

    permissions: Allowed | UnsetType = UNSET
    """Permissions that uses may need, or `*` for all."""
    projects: Allowed | UnsetType = UNSET
    """Projects that uses may name, or `*` for all."""
    models: Allowed | UnsetType = UNSET
    """Models that uses may name, or `*` for all."""
    tenants: Allowed | UnsetType = UNSET
    """Tenants that uses may name, or `*` for all."""


Quotas = Annotated[tuple[QuotaBody, ...], msgspec.Meta(max_length=8)]
RateLimits = Annotated[tuple[RateLimitBody, ...], msgspec.Meta(max_length=50)]


def quotas_of(given: tuple[QuotaBody, ...]) -> tuple[Quota, ...]:
    """Quotas as the domain takes them."""
    return tuple(
        Quota(unit=one.unit, window=one.window, limit=one.limit, alert_percents=one.alert_percents)
        for one in given
    )


def rate_limits_of(given: tuple[RateLimitBody, ...]) -> tuple[RateLimit, ...]:
    """Rate limits as the domain takes them."""
    return tuple(
        RateLimit(name=one.name, limit=one.limit, window_seconds=one.window_seconds, provider=one.provider)
        for one in given
    )


def scopes_of(given: ScopesBody) -> NewScopes:
    """Scopes as the domain takes them."""
    return NewScopes(
        permissions=given.permissions,
        projects=given.projects,
        models=given.models,
        tenants=given.tenants,
    )


def instant_of(when: datetime | None, field: str = "expires_at") -> Instant | None:
    """A time as the domain takes it."""
    return None if when is None else instant_at(when, field)


def instant_at(when: datetime, field: str) -> Instant:
    """A time as the domain takes it; one outside of the years 1 to 9999 in UTC is refused."""
    try:
        return from_datetime(when.astimezone(UTC))
    except OverflowError:
        raise invalid(field, "must be from year 1 to year 9999 in UTC") from None
