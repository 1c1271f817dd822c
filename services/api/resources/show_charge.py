"""`GET /v1/charges/{charge_id}`: one charge and its refunds."""

from __future__ import annotations

from typing import Any

import msgspec

from domain.errors import NotFoundError
from keyledger_language.events import ReservationCaptured, UsageCharged, UsageRefunded
from projections.requests import charge_and_refunds
from services.api.answering.money import ChargeView, RefundView, charge_view, refund_view
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.operations import Reply, operation
from services.api.resources.charges import PERMISSION
from services.api.resources.reservations import may_see


class ShownChargeView(View, frozen=True, kw_only=True):
    """A charge and its refunds."""

    charge: ChargeView
    """The charge, with the sum of its refunds."""
    refunds: list[RefundView]
    """The refunds, oldest first."""
    position: Position
    """Up to which position this is true."""


@operation(
    "GET",
    "/v1/charges/{charge_id}",
    tag="Charges",
    summary="Show a charge and its refunds",
    description=(
        "Also for a charge of a captured reservation, and for a deleted key. Refunds are read from "
        "projections."
    ),
    permissions=(PERMISSION, "usage:read"),
    answer=ShownChargeView,
    codes=("not_found",),
    projected=True,
)
async def get_charge(call: Call[Any, Any]) -> Reply:
    """One charge and its refunds."""
    charge_id, reader = call.path["charge_id"], call.reader
    position = reader.position
    found = await charge_and_refunds(reader.queries, reader.events, charge_id)
    event = None if found is None else found.charge.event
    if (
        found is None
        or not isinstance(event, UsageCharged | ReservationCaptured)
        or not may_see(call, call.caller, event.organization_id, event.key_id)
    ):
        raise NotFoundError("charge", charge_id)
    position = max(position, found.charge.position)  # a charge has no refunds before its own position
    charge = charge_view(event, call.place(found.charge.position))
    refunds = [
        refund_view(one.event, one.position, call.prefix)
        for one in found.refunds
        if isinstance(one.event, UsageRefunded)
    ]
    if refunds:
        charge = msgspec.structs.replace(charge, refunded_micros=refunds[-1].refunded_micros)
    view = ShownChargeView(charge=charge, refunds=refunds, position=call.place(position))
    return Reply(view, position=position)


ROUTES = [get_charge]
