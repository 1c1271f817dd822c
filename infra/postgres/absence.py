"""Whether PostgreSQL only cannot be reached yet, or the error is one that waiting cannot fix."""

from __future__ import annotations

import re
from typing import Final

import psycopg

# libpq gives no SQLSTATE for a connection that failed, only its own and the server's messages.
_NOT_REACHED: Final = re.compile(
    r"Connection refused|Connection reset|Connection timed out|timeout expired|server closed the connection"
    r'|on socket ".*" failed: No such file|Network is unreachable|No route to host|Host is down'
    r"|failed to resolve host|could not translate host name",
)
_REFUSED: Final = re.compile(r"(?:FATAL|PANIC):\s+(.*)")
_PASSING: Final = re.compile(
    r"the database system is |too many clients already|remaining connection slots"
    r"|terminating connection due to"
)
_PASSING_STATES: Final = ("08", "57P", "53300")
"""Connection lost; server is stopping or starting, or ended the session; too many connections."""


def is_absent(error: psycopg.Error) -> bool:
    """Whether the same attempt may succeed later without a change of settings.

    False for a wrong password, a missing database, and any refusal of the server that is not listed here.
    """
    if not isinstance(error, psycopg.OperationalError):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING_STATES)
    refusals = _REFUSED.findall(str(error))
    if refusals:
        return all(_PASSING.search(refusal) for refusal in refusals)
    return _NOT_REACHED.search(str(error)) is not None
