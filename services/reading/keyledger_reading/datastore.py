"""Where a recorder of the eventsourcing library gets its connection: its caller's session, or a pool."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

from eventsourcing.postgres import ConnectionPool, PostgresDatastore
from psycopg import Connection
from psycopg.rows import dict_row

from keyledger_reading.connections import READER_ROLE, ledger_conninfo, open_session, prepare_session

LEDGER_SCHEMA: Final = "ledger"
_POOL_SIZE: Final = 4


class SessionDatastore(PostgresDatastore):
    """One session, which the callable returns, instead of the library's pool.

    Failures are raised as psycopg's errors: the library's recorders then do not retry by themselves (ten
    times within two seconds), and the code that has the session knows what was in progress.
    """

    def __init__(self, session: Callable[[], Connection[Any]], *, schema: str = LEDGER_SCHEMA) -> None:
        # Its pool is never opened.
        super().__init__("", "", "", "", "", schema=schema, originator_id_type="text")
        self.session = session

    def register_type_adapters(self) -> None:
        """Register none: we use no composite types, and looking them up would take a round trip."""

    @contextmanager
    def get_connection(self) -> Generator[Connection[Any]]:
        """The session, with rows as the library reads them."""
        connection = self.session()
        row_factory, connection.row_factory = connection.row_factory, dict_row
        try:
            yield connection
        finally:
            connection.row_factory = row_factory


class PooledDatastore(PostgresDatastore):
    """The library's own pool, on connections prepared like ours, in one role: for a stock `Application`."""

    def __init__(self, conninfo: str, *, schema: str = LEDGER_SCHEMA, role: str = READER_ROLE) -> None:
        super().__init__("", "", "", "", "", schema=schema, originator_id_type="text")
        self._conninfo = conninfo
        self._role = role
        self.pool = ConnectionPool(
            ledger_conninfo(conninfo, "keyledger library"),
            connection_class=Connection[dict[str, Any]],
            kwargs={"row_factory": dict_row, "autocommit": True},
            min_size=1,
            max_size=_POOL_SIZE,
            open=False,
            configure=self._prepare,
            timeout=5.0,
        )

    def register_type_adapters(self) -> None:
        """Register none, as above."""

    def new_session(self, application_name: str) -> Connection[tuple[Any, ...]]:
        """Open a session of the caller's own. Raises psycopg.OperationalError."""
        return open_session(self._conninfo, application_name, self._role)

    def _prepare(self, connection: Connection[Any]) -> None:
        """Prepare a new connection of the pool."""
        prepare_session(connection, self._role)
