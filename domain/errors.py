"""Why the ledger says no. One base class, one public code each; HTTP is not known here."""

from __future__ import annotations

from typing import ClassVar


class LedgerError(Exception):
    """A command was refused. The message never contains a secret."""

    code: ClassVar[str] = "refused"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class InvalidError(LedgerError):
    """A field cannot be taken as it is."""

    code = "invalid_request"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)
        self.message = message


class EmptyScopeError(InvalidError):
    """An empty list in a scope is refused: nothing widens silently."""

    code = "empty_scope"

    def __init__(self, dimension: str) -> None:
        super().__init__(f"scopes.{dimension}", 'an empty list allows nothing: send "*" for everything')


class NotFoundError(LedgerError):
    """There is no such thing, or not for this caller."""

    code = "not_found"

    def __init__(self, kind: str, wanted: str, *, field: str | None = None) -> None:
        super().__init__(f"There is no {kind} {wanted}.", field=field)


class PermissionDeniedError(LedgerError):
    """The caller's root key may not do this."""

    code = "permission_denied"


class PlatformOnlyError(PermissionDeniedError):
    """Only a root key of the whole platform may do this."""

    code = "platform_only"


class CallerRefusedError(LedgerError):
    """The caller's own key stopped working meanwhile."""

    code = "unauthenticated"


class PrefixOverlapError(LedgerError):
    """Another keyspace's secrets could be taken for this one's."""

    code = "prefix_overlap"


class AlreadyExistsError(LedgerError):
    """The name is taken."""

    code = "already_exists"


class KeyRevokedError(LedgerError):
    """A revoked key is dead for good: it can be read, not changed."""

    code = "key_revoked"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key {key_id} is revoked; that cannot be undone.")


class KeyExpiredError(LedgerError):
    """An expired key gets no new secret: give it a later expiry first."""

    code = "key_expired"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key {key_id} is expired; set a later expires_at first.")


class VersionConflictError(LedgerError):
    """The caller decided on an older version (If-Match)."""

    code = "version_conflict"

    def __init__(self, subject: str, *, expected: int, actual: int) -> None:
        super().__init__(f"{subject} is at version {actual}, not {expected}.")


class IdempotencyConflictError(LedgerError):
    """The same id was used for something else before."""

    code = "idempotency_conflict"


class ReservationClosedError(LedgerError):
    """The reservation is settled: nothing can be taken from it or given back."""

    code = "reservation_closed"


class RefundExceedsChargeError(LedgerError):
    """More would be given back than was taken."""

    code = "refund_exceeds_charge"


class AmountOutOfRangeError(InvalidError):
    """The wallet or a counter would leave the range of a signed 64-bit integer."""

    code = "amount_out_of_range"


class KeyspaceInUseError(LedgerError):
    """A keyspace that has had a key is for ever: secrets of its shape are about."""

    code = "keyspace_in_use"

    def __init__(self, keyspace_id: str) -> None:
        super().__init__(f"Keyspace {keyspace_id} has had keys, so its prefix stays its own.")


class KeyspaceArchivedError(LedgerError):
    """The keyspace was given up: it takes no keys and no changes."""

    code = "keyspace_archived"

    def __init__(self, keyspace_id: str, *, field: str | None = None) -> None:
        super().__init__(f"Keyspace {keyspace_id} is archived.", field=field)


class BuiltinError(LedgerError):
    """The built-in keyspace of root keys stays as it is."""

    code = "builtin_keyspace"
