"""The errors of an edge. A refused key is not an error: it is a verdict.

EdgeError
├── RefusedByLedgerError              the ledger answered, and refused this edge's request
├── LedgerUnreachableError            the ledger did not answer in time
├── NotConnectedError                 the verifier is not connected yet, or is closed
├── UnknownKeyspaceError              this edge does not serve that keyspace
└── BadRequestError                   a forwarded request cannot be read as a use
    └── AmbiguousCredentialsError     it shows two different secrets
"""

from __future__ import annotations


class EdgeError(Exception):
    """Base of all errors that this library raises."""

    code = "edge_error"


class RefusedByLedgerError(EdgeError):
    """The ledger answered, and refused this edge's request."""

    code = "refused_by_ledger"

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"The ledger answered {status} ({code}).")
        self.status = status
        self.reason = code


class LedgerUnreachableError(EdgeError):
    """The ledger did not answer in time; the request may have been carried out."""

    code = "ledger_unreachable"


class NotConnectedError(EdgeError):
    """The verifier is not connected yet, or is closed."""

    code = "not_connected"


class UnknownKeyspaceError(EdgeError):
    """This edge does not serve the keyspace, or serves several and none was named."""

    code = "unknown_keyspace"

    def __init__(self, keyspace_id: str | None) -> None:
        said = f"does not serve keyspace {keyspace_id}" if keyspace_id else "needs a keyspace id"
        super().__init__(f"This verifier {said}.")
        self.keyspace_id = keyspace_id


class BadRequestError(EdgeError):
    """A forwarded request cannot be read as a use of a key."""

    code = "invalid_request"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class AmbiguousCredentialsError(BadRequestError):
    """The request has two different secrets, so it is ambiguous which one it means."""

    code = "ambiguous_credentials"

    def __init__(self) -> None:
        super().__init__("The request has two different secrets; send one.")
