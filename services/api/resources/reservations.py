"""`/v1/reservations`: hold money, look at it, capture it, release it."""

from __future__ import annotations

from domain.commands import CaptureReservation, ReleaseReservation, ReserveCredits
from domain.decisions.reservations import CaptureOutcome, ReleaseOutcome
from domain.errors import NotFoundError
from domain.events import CreditsReserved
from domain.ids import format_position, is_id
from keyledger_edge import VALID
from services.api.answering.answers import Answer, json_answer
from services.api.answering.money import (
    charge_view,
    quota_views,
    reservation_view,
    reserved_view,
    wallet_view,
)
from services.api.asking.callers import Caller, Callers
from services.api.asking.requests import HotRequest
from services.api.asking.uses import read_capture, read_release, read_reserve
from services.api.resources.charges import PERMISSION, check_metering, placed, quotas_of, refused
from services.api.resources.metering import Metering, asked
from services.ledger.ledger import Ledger

_CREATED, _OK = 201, 200


class Reservations:
    """Holds money for uses whose price is not known yet."""

    def __init__(self, ledger: Ledger, callers: Callers, metering: Metering) -> None:
        self._ledger = ledger
        self._callers = callers
        self._metering = metering

    async def make(self, request: HotRequest) -> Answer:
        """Hold money."""
        caller = self._caller(request)
        body = read_reserve(request.body)
        keyspace, use = check_metering(self._metering, body, caller)
        ask = asked(
            request_id=body.request_id, base_micros=body.amount_micros, use=use, metadata=body.metadata
        )
        ask["expires_in_seconds"] = body.expires_in_seconds
        if keyspace is None:
            ask["key_id"] = body.key_id
        outcome, position = await self._metering.ask(
            ReserveCredits, ask, body.secret, keyspace, caller.asking
        )
        if outcome.code != VALID:
            if keyspace is None and outcome.key is not None:
                keyspace = self._ledger.state.keyspaces.get(outcome.key.keyspace_id)
            answer = refused(outcome.code, keyspace, request.request_id, outcome.refusal, outcome.rates)
            return placed(answer, self._ledger.position_prefix, position)
        event, prefix = outcome.event, self._ledger.position_prefix
        assert isinstance(event, CreditsReserved), "a reservation records a reservation"
        view = reserved_view(event, position, prefix)
        if outcome.replayed:
            await self._bring_up_to_date(view, event.reservation_id)
        return json_answer(
            _CREATED,
            {
                "reservation": view,
                "position": format_position(prefix, position),
                "replayed": outcome.replayed,
                "quotas": quota_views(outcome.quotas),
                "wallet": wallet_view(outcome.wallet),
            },
        )

    async def _bring_up_to_date(self, view: dict[str, object], reservation_id: str) -> None:
        """A replayed answer shows what became of the reservation since."""
        now = await self._ledger.find_reservation(reservation_id)
        if now is not None:
            position = view["position"]
            view.update(reservation_view(now, self._ledger.position_prefix), position=position)

    async def show(self, request: HotRequest, reservation_id: str) -> Answer:
        """A reservation as it stands."""
        caller = self._callers.authenticate_any(
            request.authorization, (PERMISSION, "usage:read"), request.peer
        )
        if not self._ledger.confirmed:
            self._ledger.must_own()
        reservation = (
            await self._ledger.find_reservation(reservation_id) if is_id("rsv", reservation_id) else None
        )
        if reservation is None or not self._may_see(caller, reservation.organization_id, reservation.key_id):
            raise NotFoundError("reservation", reservation_id)
        prefix = self._ledger.position_prefix
        return json_answer(
            _OK,
            {
                "reservation": reservation_view(reservation, prefix),
                "position": format_position(prefix, self._ledger.state.head),
            },
        )

    def _may_see(self, caller: Caller, organization_id: str, key_id: str) -> bool:
        if caller.organization_id not in (None, organization_id):
            return False
        key = self._ledger.state.keys.get(key_id)
        return caller.keyspace_id is None or (key is not None and key.keyspace_id == caller.keyspace_id)

    async def capture(self, request: HotRequest, reservation_id: str) -> Answer:
        """Turn what is held, or part of it, into a charge."""
        caller = self._caller(request)
        body = read_capture(request.body)
        self._metering.watch.refuse(body.request_id, "request_id")
        _check_id(reservation_id)
        command = CaptureReservation(
            reservation_id=reservation_id,
            request_id=body.request_id,
            base_micros=body.amount_micros,
            final=body.final,
        )
        done = await self._ledger.execute(command, caller.asking)
        outcome: CaptureOutcome = done.result
        prefix = self._ledger.position_prefix
        if outcome.code != VALID:
            self._ledger.denied(outcome.key.id, outcome.code, body.request_id, body.amount_micros)
            keyspace = self._ledger.state.keyspaces.get(outcome.key.keyspace_id)
            answer = refused(outcome.code, keyspace, request.request_id, outcome.refusal)
            return placed(answer, prefix, done.position)
        assert outcome.event is not None, "a capture that was granted is recorded"
        return json_answer(
            _CREATED,
            {
                "charge": charge_view(outcome.event, outcome.position, prefix),
                "reservation": reservation_view(outcome.reservation, prefix),
                "uncovered_micros": outcome.event.uncovered_micros,
                "position": format_position(prefix, outcome.position),
                "replayed": outcome.replayed,
                "quotas": quota_views(outcome.quotas),
                "wallet": wallet_view(outcome.wallet),
            },
        )

    async def release(self, request: HotRequest, reservation_id: str) -> Answer:
        """Give back what is still held."""
        caller = self._caller(request)
        body = read_release(request.body)
        self._metering.watch.refuse(body.request_id, "request_id")
        _check_id(reservation_id)
        command = ReleaseReservation(reservation_id=reservation_id, request_id=body.request_id)
        done = await self._ledger.execute(command, caller.asking)
        outcome: ReleaseOutcome = done.result
        prefix = self._ledger.position_prefix
        key = self._ledger.state.keys.get(outcome.reservation.key_id)
        return json_answer(
            _OK,
            {
                "reservation": reservation_view(outcome.reservation, prefix),
                "released_micros": outcome.released_micros,
                "position": format_position(prefix, outcome.position),
                "replayed": outcome.replayed,
                "quotas": quota_views(quotas_of(self._ledger, key, outcome.reservation.project_id)),
                "wallet": wallet_view(outcome.wallet),
            },
        )

    def _caller(self, request: HotRequest) -> Caller:
        return self._callers.authenticate(request.authorization, PERMISSION, request.peer)


def _check_id(reservation_id: str) -> None:
    if not is_id("rsv", reservation_id):
        raise NotFoundError("reservation", reservation_id)
