"""The reasons why the ledger refuses. One base class, one public code each; nothing here knows HTTP."""

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
    """A field is not valid."""

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
    """It does not exist, or the caller may not know of it."""

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
    """The caller's own key has stopped working in the meantime."""

    code = "unauthenticated"


class PrefixOverlapError(LedgerError):
    """The secrets of another keyspace could be mistaken for this one's."""

    code = "prefix_overlap"


class AlreadyExistsError(LedgerError):
    """The name is already taken."""

    code = "already_exists"


class KeyRevokedError(LedgerError):
    """A revoked key is stopped for good: it can be read, but not changed."""

    code = "key_revoked"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key {key_id} is revoked; that cannot be undone.")


class KeyExpiredError(LedgerError):
    """An expired key gets no new secret: give it a later expiry first."""

    code = "key_expired"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key {key_id} is expired; set a later expires_at first.")


class VersionConflictError(LedgerError):
    """The caller's decision is based on an older version (If-Match)."""

    code = "version_conflict"

    def __init__(self, subject: str, *, expected: int, actual: int) -> None:
        super().__init__(f"{subject} is at version {actual}, not {expected}.")


class IdempotencyConflictError(LedgerError):
    """The same id was used for something else before."""

    code = "idempotency_conflict"


class ReservationClosedError(LedgerError):
    """The reservation is settled: it can be neither captured nor released."""

    code = "reservation_closed"


class RefundExceedsChargeError(LedgerError):
    """More would be given back than was taken."""

    code = "refund_exceeds_charge"


class AmountOutOfRangeError(InvalidError):
    """The wallet or a counter would leave the range of a signed 64-bit integer."""

    code = "amount_out_of_range"


class KeyspaceInUseError(LedgerError):
    """A keyspace that has had a key cannot be archived: secrets with its prefix are in circulation."""

    code = "keyspace_in_use"

    def __init__(self, keyspace_id: str) -> None:
        super().__init__(f"Keyspace {keyspace_id} has had keys, so its prefix stays reserved.")


class KeyspaceArchivedError(LedgerError):
    """The keyspace is archived: it accepts no keys and no changes."""

    code = "keyspace_archived"

    def __init__(self, keyspace_id: str, *, field: str | None = None) -> None:
        super().__init__(f"Keyspace {keyspace_id} is archived.", field=field)


class BuiltinError(LedgerError):
    """The built-in keyspace of root keys cannot be changed."""

    code = "builtin_keyspace"
