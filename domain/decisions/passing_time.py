"""What happens through the passing of time alone is recorded before a decision that depends on it."""

from __future__ import annotations

from domain.decisions.reservations import expire_reservation
from domain.desk import Desk
from domain.state import Books, Due
from keyledger_language import events as e


def is_open(books: Books, due: Due) -> bool:
    """Whether an entry of the agenda is still to be recorded when its time has come."""
    _, kind, subject, generation = due
    if kind == "reservation_expires":
        reservation = books.reservations.find(subject)
        return reservation is not None and reservation.status == "open"
    key = books.keys.find(subject)
    if key is None or key.revoked_at is not None:
        return False
    if kind == "key_expires":
        return not key.expiry_recorded
    return any(one.generation == generation and not one.retired for one in key.secrets)


def record_due(desk: Desk, due: Due) -> None:
    """Record an expiry, unless it was postponed or settled in the meantime."""
    when, kind, subject, generation = due
    # It was taken off the agenda because its time had come, even if the clock has stepped back since.
    desk.now = max(desk.now, when)
    if kind == "key_expires":
        _key_expires(desk, subject)
    elif kind == "secret_ends":
        _secret_ends(desk, subject, generation)
    elif kind == "reservation_expires":
        reservation = desk.draft.reservations.find(subject)
        if reservation is not None and reservation.status == "open" and reservation.expires_at <= desk.now:
            expire_reservation(desk, reservation)


def _key_expires(desk: Desk, key_id: str) -> None:
    key = desk.draft.keys.find(key_id)
    if key is None or key.expires_at is None or key.expires_at > desk.now:
        return
    if not key.expiry_recorded and key.revoked_at is None:
        desk.record(e.KeyExpired(at=desk.now, organization_id=key.organization_id, key_id=key.id))


def _secret_ends(desk: Desk, key_id: str, generation: int) -> None:
    key = desk.draft.keys.find(key_id)
    if key is None or key.revoked_at is not None:
        return
    for secret in key.secrets:
        ended = secret.ends_at is not None and secret.ends_at <= desk.now
        if secret.generation == generation and ended and not secret.retired:
            desk.record(
                e.SecretRetired(
                    at=desk.now,
                    organization_id=key.organization_id,
                    key_id=key.id,
                    generation=generation,
                )
            )
