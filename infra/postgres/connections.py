"""How we connect to PostgreSQL: as the service's role, noticing dead peers, refusing unsafe settings."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

SERVICE_ROLE: Final = "keyledger_service"
ADVISORY_CLASS: Final = 1262243905
"""`KL` and a bit, as the first of the two integers of every advisory lock of ours."""

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
_UNSAFE_SETTINGS: Final = """
    SELECT name FROM pg_settings
    WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'off'
    ORDER BY name
"""


class UnsafeDatabaseError(Exception):
    """The server may lose what it acknowledged."""


def ledger_conninfo(conninfo: str, application_name: str) -> str:
    """The conninfo with our keepalives (those given win) and the name shown in pg_stat_activity."""
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # libpq's own words quote the string, and a password may stand in it.
        raise ValueError("The database's URL is not one that libpq understands.") from None
    return make_conninfo("", **{**_CLIENT_KEEPALIVES, "application_name": application_name, **given})


def connect(conninfo: str, application_name: str) -> Connection[tuple[Any, ...]]:
    """Open a connection in autocommit mode, acting as the service's role where there is one."""
    connection = psycopg.connect(ledger_conninfo(conninfo, application_name), autocommit=True)
    try:
        prepare_session(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare_session(connection: Connection[Any]) -> None:
    """Take the service's role and let the server, too, notice a dead peer."""
    connection.execute(_PREPARE_SESSION, (SERVICE_ROLE,))
    connection.prepare_threshold = 1


def refuse_unsafe_settings(connection: Connection[tuple[Any, ...]]) -> None:
    """Refuse a server that acknowledges before it is durable."""
    off = [name for (name,) in connection.execute(_UNSAFE_SETTINGS)]
    if off:
        raise UnsafeDatabaseError(
            f"PostgreSQL runs with {' and '.join(f'{name}=off' for name in off)}, and could lose"
            " charges that were acknowledged: turn it on."
        )
