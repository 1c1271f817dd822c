"""`/v1/reservations`: hold money, show the reservation, capture it, release it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from domain.accounts import Reservation
from domain.commands import CaptureReservation, ReleaseReservation, ReserveCredits
from domain.decisions.reservations import CaptureOutcome, ReleaseOutcome
from domain.errors import NotFoundError
from domain.ids import format_position, is_id
from keyledger_language import VALID, Tenant, Use
from keyledger_language.events import CreditsReserved
from services.api.answering.money import (
    CapturedView,
    HeldView,
    ReleasedView,
    ReservationView,
    ReservedView,
    charge_view,
    reservation_view,
    reserved_view,
    wallet_figures,
)
from services.api.answering.quotas import quota_figures
from services.api.answering.refusals import use_refused
from services.api.asking.call import Call
from services.api.asking.callers import Caller
from services.api.asking.uses import CaptureBody, ReleaseBody, ReserveBody
from services.api.operations import OWN_KEY, Reply, operation
from services.api.resources.charges import PERMISSION, check_metering, quotas_of
from services.api.resources.metering import asked
from services.api.resources.verdicts import MONEY, VERDICTS
from services.ledger.sightings import Refused

_TAG: Final = "Reservations"
_CREATED: Final = 201


@operation(
    "POST",
    "/v1/reservations",
    operation_id="createReservation",
    tag=_TAG,
    summary="Hold money for a use whose price is not known yet",
    permissions=(PERMISSION,),
    body=ReserveBody,
    status=_CREATED,
    shown_at="/v1/reservations/{reservation_id}",
    answer=ReservedView,
    codes=(*VERDICTS, *MONEY),
    instead_of_a_key=OWN_KEY,
    example={
        "key_id": "key_01JD0000000000000000000000",
        "request_id": "r-2",
        "amount_micros": 40_000,
        "expires_in_seconds": 600,
    },
)
async def reserve(call: Call[Any, ReserveBody]) -> Reply:
    """Hold money."""
    body, ledger, metering = call.body, call.ledger, call.api.metering
    keyspace, use = check_metering(metering, body, call.caller)
    ask = asked(request_id=body.request_id, base_micros=body.amount_micros, use=use, metadata=body.metadata)
    ask["expires_in_seconds"] = body.expires_in_seconds
    if keyspace is None:
        ask["key_id"] = body.key_id
    outcome, position = await metering.ask(ReserveCredits, ask, body.secret, keyspace, call.caller.asking)
    if outcome.code != VALID:
        raise metering.refused(outcome, keyspace, position)
    event, prefix = outcome.event, ledger.position_prefix
    assert isinstance(event, CreditsReserved), "a reservation records a reservation"
    shown = reserved_view(event, position, prefix)
    view = ReservedView(
        reservation=await _as_it_stands(call, shown) if outcome.replayed else shown,
        position=format_position(prefix, position),
        replayed=outcome.replayed,
        quotas=quota_figures(outcome.quotas),
        wallet=wallet_figures(outcome.wallet),
    )
    return Reply(view, _CREATED, position=position)


async def _as_it_stands(call: Call[Any, Any], first: ReservationView) -> ReservationView:
    """A replayed answer shows the reservation's present state."""
    now = await call.ledger.find_reservation(first.id)
    if now is None:
        return first
    view = reservation_view(now, call.ledger.position_prefix)
    return msgspec.structs.replace(view, position=first.position, metadata=first.metadata)


@operation(
    "GET",
    "/v1/reservations/{reservation_id}",
    tag=_TAG,
    summary="Show a reservation",
    permissions=(PERMISSION, "usage:read"),
    answer=HeldView,
    codes=("not_found",),
)
async def get_reservation(call: Call[Any, Any]) -> Reply:
    """Show a reservation's present state."""
    ledger, reservation_id = call.ledger, call.path["reservation_id"]
    if not ledger.confirmed:
        ledger.must_own()
    found = await ledger.find_reservation(reservation_id) if is_id("rsv", reservation_id) else None
    if found is None or not may_see(call, call.caller, found.organization_id, found.key_id):
        raise NotFoundError("reservation", reservation_id)
    head = ledger.head
    return Reply(
        HeldView(reservation=reservation_view(found, call.prefix), position=call.place(head)), position=head
    )


def may_see(call: Call[Any, Any], caller: Caller, organization_id: str | None, key_id: str) -> bool:
    """Whether it belongs to the organization and keyspace that the caller is bound to, if any."""
    if caller.organization_id not in (None, organization_id):
        return False
    key = call.books.keys.get(key_id)
    return caller.keyspace_id is None or (key is not None and key.keyspace_id == caller.keyspace_id)


@operation(
    "POST",
    "/v1/reservations/{reservation_id}/capture",
    operation_id="captureReservation",
    tag=_TAG,
    summary="Turn held money, or part of it, into a charge",
    permissions=(PERMISSION,),
    body=CaptureBody,
    status=_CREATED,
    shown_at="/v1/charges/{charge_id}",
    answer=CapturedView,
    codes=("not_found", "reservation_closed", *MONEY),
    instead_of_a_key=OWN_KEY,
    example={"request_id": "r-2-capture", "amount_micros": 31_000, "final": True},
)
async def capture(call: Call[Any, CaptureBody]) -> Reply:
    """Turn held money, or part of it, into a charge."""
    body, ledger = call.body, call.ledger
    command = CaptureReservation(
        reservation_id=_id(call),
        request_id=body.request_id,
        base_micros=body.amount_micros,
        final=body.final,
    )
    done = await ledger.execute(command, call.caller.asking)
    outcome: CaptureOutcome = done.result
    if outcome.code != VALID:
        ledger.denied(outcome.key.id, outcome.code, _refused_capture(body, outcome.reservation))
        keyspace = call.books.keyspaces.get(outcome.key.keyspace_id)
        raise use_refused(outcome.code, keyspace, outcome.refusal, position=done.position)
    assert outcome.event is not None, "a capture that was granted is recorded"
    prefix = ledger.position_prefix
    view = CapturedView(
        charge=charge_view(outcome.event, format_position(prefix, outcome.position)),
        reservation=reservation_view(outcome.reservation, prefix),
        uncovered_micros=outcome.event.uncovered_micros,
        position=format_position(prefix, outcome.position),
        replayed=outcome.replayed,
        quotas=quota_figures(outcome.quotas),
        wallet=wallet_figures(outcome.wallet),
    )
    return Reply(view, _CREATED, position=outcome.position)


def _refused_capture(body: CaptureBody, held: Reservation) -> Refused:
    """What a refused capture asked for: it has the price multiplier and the use of its reservation."""
    use = Use(
        model=held.model,
        provider=held.provider,
        project_id=held.project_id,
        tenant=Tenant(org_id=held.tenant_org_id, user_id=held.tenant_user_id),
    )
    return Refused(body.request_id, body.amount_micros, held.price_multiplier, use)


@operation(
    "POST",
    "/v1/reservations/{reservation_id}/release",
    operation_id="releaseReservation",
    tag=_TAG,
    summary="Release what is still held",
    permissions=(PERMISSION,),
    body=ReleaseBody,
    answer=ReleasedView,
    codes=("not_found", "reservation_closed"),
    instead_of_a_key=OWN_KEY,
    example={"request_id": "r-3-release"},
)
async def release(call: Call[Any, ReleaseBody]) -> Reply:
    """Release what is still held."""
    ledger = call.ledger
    command = ReleaseReservation(reservation_id=_id(call), request_id=call.body.request_id)
    done = await ledger.execute(command, call.caller.asking)
    outcome: ReleaseOutcome = done.result
    prefix, held = ledger.position_prefix, outcome.reservation
    view = ReleasedView(
        reservation=reservation_view(held, prefix),
        released_micros=outcome.released_micros,
        position=format_position(prefix, outcome.position),
        replayed=outcome.replayed,
        quotas=quota_figures(quotas_of(call, held.key_id, held.project_id)),
        wallet=wallet_figures(outcome.wallet),
    )
    return Reply(view, position=outcome.position)


def _id(call: Call[Any, Any]) -> str:
    reservation_id = call.path["reservation_id"]
    if not is_id("rsv", reservation_id):
        raise NotFoundError("reservation", reservation_id)
    return reservation_id


ROUTES = [reserve, get_reservation, capture, release]
