"""Is PostgreSQL only not there yet, or will waiting not help?"""

from __future__ import annotations

import re
from typing import Final

import psycopg

# libpq gives no SQLSTATE for a connection that was not made, only its own and the server's words.
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
"""Connection lost; server stops, starts or ended the session; too many connections."""


def is_absent(error: psycopg.Error) -> bool:
    """May the same attempt succeed later though nobody changes a setting?

    A wrong password, a missing database or a server's refusal that is not known here: no.
    """
    if not isinstance(error, psycopg.OperationalError):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING_STATES)
    refusals = _REFUSED.findall(str(error))
    if refusals:
        return all(_PASSING.search(refusal) for refusal in refusals)
    return _NOT_REACHED.search(str(error)) is not None
