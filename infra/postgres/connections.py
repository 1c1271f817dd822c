"""Connecting to PostgreSQL: in the service's role, detecting dead peers, refusing unsafe settings."""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection

from keyledger_reading.connections import open_session

SERVICE_ROLE: Final = "keyledger_service"
ADVISORY_CLASS: Final = 1262243905
"""`KL` and a bit: the first of the two integers of our advisory locks."""

_UNSAFE_SETTINGS: Final = """
    SELECT name FROM pg_settings
    WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'off'
    ORDER BY name
"""
_WAITS_FOR_NO_STANDBY: Final = """
    SELECT current_setting('synchronous_standby_names')
    WHERE current_setting('synchronous_standby_names') <> ''
        AND current_setting('synchronous_commit') = 'local'
"""
# Set even if it has this value already: a later reload of the server's settings then does not change it.
_WAIT_FOR_STANDBY: Final = """
    SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
# Longer than any commit waits while its standby is connected.
_STANDBY_SECONDS: Final = 0.5
_WAITS_FOR_STANDBY: Final = """
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
        AND usename = session_user AND wait_event = 'SyncRep'
        AND state_change < clock_timestamp() - make_interval(secs => %s))
"""


class UnsafeDatabaseError(Exception):
    """The server may lose writes that it acknowledged."""


def connect(conninfo: str, application_name: str, *, role: str = SERVICE_ROLE) -> Connection[tuple[Any, ...]]:
    """Open a session in autocommit mode; it acts in this role if its user may. "": in the login role."""
    return open_session(conninfo, application_name, role)


def wait_for_standby(connection: Connection[Any]) -> None:
    """Make the session's commits wait until the synchronous standby, if one is named, has them on disk."""
    connection.execute(_WAIT_FOR_STANDBY)


def waits_for_standby(connection: Connection[Any]) -> bool:
    """Whether a commit of this user has been waiting for a synchronous standby for a while.

    Query it as the user that logged in: PostgreSQL does not show the sessions of other users.
    """
    row = connection.execute(_WAITS_FOR_STANDBY, (_STANDBY_SECONDS,)).fetchone()
    return bool(row and row[0])


def refuse_unsafe_settings(connection: Connection[tuple[Any, ...]]) -> None:
    """Refuse a server that acknowledges writes before they are durable."""
    off = [name for (name,) in connection.execute(_UNSAFE_SETTINGS)]
    if off:
        raise UnsafeDatabaseError(
            f"PostgreSQL runs with {' and '.join(f'{name}=off' for name in off)}, and could lose"
            " charges that were acknowledged: turn it on."
        )
    if named := connection.execute(_WAITS_FOR_NO_STANDBY).fetchone():
        raise UnsafeDatabaseError(
            f"PostgreSQL names synchronous standbys ({named[0]}) and runs with synchronous_commit=local,"
            " which does not wait for them, and could lose charges that were acknowledged: set it to on."
        )
