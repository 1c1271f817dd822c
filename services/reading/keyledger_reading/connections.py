"""Sessions with the PostgreSQL that stores a log: they act in a role and detect dead peers."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

READER_ROLE: Final = "keyledger_reader"
"""May read the log, and nothing else of a ledger's database: no data keys, claims, state or projections."""

_CONNECT_TIMEOUT_SECONDS: Final = 5

# A peer that dies silently is detected within about 8 seconds, on both ends: the server then
# releases a dead owner's lock, and an owner whose server is dead no longer takes itself for one.
_CLIENT_KEEPALIVES: Final = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
    "connect_timeout": str(_CONNECT_TIMEOUT_SECONDS),
}
_PREPARE_SESSION: Final = """
    SELECT set_config('tcp_keepalives_idle', '5', false),
        set_config('tcp_keepalives_interval', '1', false),
        set_config('tcp_keepalives_count', '3', false),
        set_config('tcp_user_timeout', '8000', false),
        set_config('jit', 'off', false),
        (SELECT set_config('role', rolname, false) FROM pg_roles
            WHERE rolname = %s AND pg_has_role(session_user, oid, 'SET')) AS role
"""


def ledger_conninfo(conninfo: str, application_name: str) -> str:
    """The conninfo with our keepalives (its own take precedence) and the name shown in pg_stat_activity."""
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # libpq's own message quotes the string, which may contain a password.
        raise ValueError("The database URL is not a valid URL or conninfo of libpq.") from None
    return make_conninfo("", **{**_CLIENT_KEEPALIVES, "application_name": application_name, **given})


def open_session(conninfo: str, application_name: str, role: str) -> Connection[tuple[Any, ...]]:
    """Open a session in autocommit mode; it acts in this role if its user may. "": in the login role."""
    connection = psycopg.connect(ledger_conninfo(conninfo, application_name), autocommit=True)
    try:
        prepare_session(connection, role)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare_session(connection: Connection[Any], role: str) -> None:
    """Set the role, and make the server detect a dead peer, too."""
    connection.execute(_PREPARE_SESSION, (role,))
    connection.prepare_threshold = 1


def hang_up(connection: Connection[Any]) -> None:
    """End the session from our side, whatever it waits for; its own thread finds the connection broken.

    The statement is not cancelled: a commit that waits for its standby would then report success.
    """
    # Another descriptor of the same socket: libpq's own stays open until its thread closes it.
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as ours,
    ):
        ours.shutdown(socket.SHUT_RDWR)
