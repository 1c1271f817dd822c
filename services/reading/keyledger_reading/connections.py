"""Sessions with the PostgreSQL that keeps a log: acting in a role, noticing peers that are gone."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

READER_ROLE: Final = "keyledger_reader"
"""May read the log, and nothing else of a ledger's database: no data keys, claims, state or projections."""

_CONNECT_TIMEOUT_SECONDS: Final = 5

# A peer that is gone without a word is noticed within about 8 seconds, on both ends: the server
# then frees a dead owner's lock, the owner then stops believing that it is one.
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
            WHERE rolname = %s AND pg_has_role(session_user, oid, 'MEMBER')) AS role
"""


def ledger_conninfo(conninfo: str, application_name: str) -> str:
    """The conninfo with our keepalives (those given win) and the name shown in pg_stat_activity."""
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # libpq's own words quote the string, and a password may stand in it.
        raise ValueError("The database's URL is not one that libpq understands.") from None
    return make_conninfo("", **{**_CLIENT_KEEPALIVES, "application_name": application_name, **given})


def open_session(conninfo: str, application_name: str, role: str) -> Connection[tuple[Any, ...]]:
    """Open a session in autocommit mode, acting in this role where its user may; "": as who logs in."""
    connection = psycopg.connect(ledger_conninfo(conninfo, application_name), autocommit=True)
    try:
        prepare_session(connection, role)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare_session(connection: Connection[Any], role: str) -> None:
    """Take the role and let the server, too, notice a dead peer."""
    connection.execute(_PREPARE_SESSION, (role,))
    connection.prepare_threshold = 1
