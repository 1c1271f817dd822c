"""Usage by hour, day or month: of a key, or of an organization."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from domain.decisions.access import find_key, find_organization
from keyledger_language.instants import DAY, Instant, to_text
from projections.usage import (
    Bucket,
    By,
    DenialRow,
    UsageRow,
    VerificationRow,
    list_denials,
    list_usage,
    list_verifications,
)
from services.api.answering.problems import invalid
from services.api.answering.views import Micros, Position, Time, VerdictCode, View
from services.api.asking.call import Call
from services.api.asking.fields import instant_at
from services.api.lists import Span
from services.api.operations import Reply, operation

_TAG: Final = "Usage"
_HOUR: Final = DAY // 24
_LENGTHS: Final[dict[Bucket, Instant]] = {"hour": _HOUR, "day": DAY, "month": 28 * DAY}
_SPANS: Final[dict[Bucket, Instant]] = {"hour": DAY, "day": 30 * DAY, "month": 365 * DAY}
"""How far back a query goes if no `from` is given."""
_MOST_BUCKETS: Final = 1_500
_EARLIEST: Final = instant_at(datetime.min.replace(tzinfo=UTC), "from")


class UsageQuery(Span, frozen=True, kw_only=True):
    """Which time span, and how to sum up. Hours are whole, buckets follow the UTC calendar."""

    bucket: Bucket = "day"
    """The length of a row's time span."""
    by: By | None = None
    """Split the rows by this dimension."""


class UsageRowView(View, frozen=True, kw_only=True, omit_defaults=True):
    """The counts of one bucket; with `by`, of one value of that dimension."""

    start: Time
    """When the bucket begins."""
    requests: int
    """Uses that cost money: charges and reservations."""
    charged_micros: Micros
    """What they cost, in micros."""
    refunds: int
    """How many refunds there were."""
    refunded_micros: Micros
    """What was given back, in micros."""
    spent_micros: Micros
    """What was charged and not given back, in micros."""
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=model`: the model; null for uses that named none."""
    project_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=project`: the project; null for uses that named none."""
    provider: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=provider`: the provider; null for uses that named none."""
    tenant_org_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=tenant`: the customer's own customer; null for uses that named none."""
    tenant_user_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=tenant`: the user; null for uses that named none."""
    key_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `by=key`: the key."""


class DenialRowView(View, frozen=True, kw_only=True):
    """How often uses were refused with one code in one bucket."""

    start: Time
    """When the bucket begins."""
    code: VerdictCode
    """Why they were refused."""
    denials: int
    """How many uses were refused with this code."""


class VerificationRowView(View, frozen=True, kw_only=True):
    """How often keys were verified without a charge in one bucket."""

    start: Time
    """When the bucket begins."""
    verifications: int
    """How many verifications without a cost there were."""


class UsageView(View, frozen=True, kw_only=True):
    """Usage, oldest first."""

    from_: Time = msgspec.field(name="from")
    """The beginning, included."""
    to: Time
    """The end, not included."""
    bucket: Bucket
    """The length of a row's time span."""
    by: By | None
    """The dimension that rows are split by; null: none."""
    items: list[UsageRowView]
    """What was used, oldest first; a bucket without use has no row."""
    denials: list[DenialRowView]
    """What was refused, oldest first."""
    verifications: list[VerificationRowView]
    """What was verified without a cost, oldest first."""
    position: Position


_DIMENSIONS: Final[dict[By, tuple[str, ...]]] = {
    "model": ("model",),
    "project": ("project_id",),
    "provider": ("provider",),
    "tenant": ("tenant_org_id", "tenant_user_id"),
    "key": ("key_id",),
}


@operation(
    "GET",
    "/v1/keys/{key_id}/usage",
    tag=_TAG,
    summary="Show a key's usage",
    description="Also for a deleted key. Verifications are counted about once a minute.",
    permissions=("usage:read",),
    query=UsageQuery,
    answer=UsageView,
    codes=("not_found",),
    projected=True,
)
async def get_key_usage(call: Call[UsageQuery, Any]) -> Reply:
    """Usage of one key."""
    key = find_key(call.desk, call.path["key_id"], deleted=True)
    return await _usage(call, key_id=key.id)


@operation(
    "GET",
    "/v1/organizations/{organization_id}/usage",
    tag=_TAG,
    summary="Show an organization's usage",
    permissions=("usage:read",),
    query=UsageQuery,
    answer=UsageView,
    codes=("not_found",),
    projected=True,
)
async def get_organization_usage(call: Call[UsageQuery, Any]) -> Reply:
    """Usage of all keys of an organization."""
    organization = find_organization(call.desk, call.path["organization_id"])
    return await _usage(call, organization_id=organization.id)


async def _usage(call: Call[UsageQuery, Any], **of: str) -> Reply:
    query = call.query
    from_at, to_at = _span(query, call.now)
    queries, position = call.reader.queries, call.reader.position
    asked: dict[str, Any] = {"from_at": from_at, "to_at": to_at, "bucket": query.bucket, **of}
    usage = await list_usage(queries, by=query.by, **asked)
    denials = await list_denials(queries, **asked)
    verifications = await list_verifications(queries, **asked)
    view = UsageView(
        from_=to_text(from_at),
        to=to_text(to_at),
        bucket=query.bucket,
        by=query.by,
        items=[_row_view(row, query.by) for row in usage],
        denials=[_denial_view(row) for row in denials],
        verifications=[_verification_view(row) for row in verifications],
        position=call.place(position),
    )
    return Reply(view, position=position)


def _span(query: UsageQuery, now: Instant) -> tuple[Instant, Instant]:
    """The beginning and the end; without a given end, the current hour is included."""
    to_at = now + _HOUR if query.to is None else instant_at(query.to, "to")
    if query.from_ is None:
        from_at = to_at - _SPANS[query.bucket]
        from_at = max(from_at - from_at % _HOUR, _EARLIEST)
    else:
        from_at = instant_at(query.from_, "from")
    if from_at >= to_at:
        raise invalid("from", "must be before to")
    if to_at - from_at > _MOST_BUCKETS * _LENGTHS[query.bucket]:
        raise invalid("from", f"at most {_MOST_BUCKETS} buckets at once: choose a larger bucket")
    return from_at, to_at


def _row_view(row: UsageRow, by: By | None) -> UsageRowView:
    names = () if by is None else _DIMENSIONS[by]
    dimensions: dict[str, Any] = dict(zip(names, row.group, strict=True))
    return UsageRowView(
        start=to_text(row.start),
        requests=row.requests,
        charged_micros=row.charged_micros,
        refunds=row.refunds,
        refunded_micros=row.refunded_micros,
        spent_micros=row.spent_micros,
        **dimensions,
    )


def _denial_view(row: DenialRow) -> DenialRowView:
    return DenialRowView(start=to_text(row.start), code=row.code, denials=row.denials)


def _verification_view(row: VerificationRow) -> VerificationRowView:
    return VerificationRowView(start=to_text(row.start), verifications=row.verifications)


ROUTES = [get_key_usage, get_organization_usage]
