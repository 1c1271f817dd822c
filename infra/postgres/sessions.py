"""Threads with a connection each: psycopg is fastest when it is used synchronously."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import psycopg
from psycopg import Connection

from domain.ports import LogUnavailableError
from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import SERVICE_ROLE, connect
from keyledger_reading.connections import hang_up

_CLOSING_SECONDS: Final = 5.0
"""A commit may wait for a standby that is disconnected; a process that stops does not."""

T = TypeVar("T")
Work = Callable[[Connection[tuple[Any, ...]]], T]


class Sessions:
    """A few threads that run work on connections of their own, reconnecting when one was lost.

    For work that may be done twice: it is retried once, on a new connection.
    """

    def __init__(self, conninfo: str, application_name: str, *, most: int, role: str = SERVICE_ROLE) -> None:
        self._conninfo = conninfo
        self._application_name = application_name
        self._role = role
        self._threads = ThreadPoolExecutor(max_workers=most, thread_name_prefix=application_name)
        self._local = threading.local()
        self._open: list[Connection[tuple[Any, ...]]] = []
        self._closing = False
        self._renewals = 0

    def renew(self) -> None:
        """Reconnect before the next work: these sessions may be connected to a deposed server."""
        self._renewals += 1

    async def run(self, work: Work[T]) -> T:
        """Run the work on one of the threads; LogUnavailableError if PostgreSQL cannot be reached."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def session(self) -> Connection[tuple[Any, ...]]:
        """The calling thread's connection, while it runs work."""
        connection: Connection[tuple[Any, ...]] = self._local.connection
        return connection

    async def close(self) -> None:
        """Let work that has begun finish, if it does so soon, and close all connections."""
        self._closing = True
        ending = asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        await asyncio.wait({ending}, timeout=_CLOSING_SECONDS)
        if not ending.done():
            for connection in self._open:
                hang_up(connection)
        await ending
        for connection in self._open:
            connection.close()

    def _run(self, work: Work[T]) -> T:
        try:
            connection = self._connection()
            try:
                return work(connection)
            except psycopg.OperationalError:
                if self._closing or not connection.closed:
                    raise
            # The server was restarted since the last use: a new connection may work.
            return work(self._connection())
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error

    def _connection(self) -> Connection[tuple[Any, ...]]:
        connection: Connection[tuple[Any, ...]] | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.renewals != self._renewals:
            connection.close()
        if connection is None or connection.closed:
            if connection is not None:
                # Both, because connecting may fail: the next time there must be nothing to remove.
                self._open.remove(connection)
                self._local.connection = None
            renewals = self._renewals
            connection = connect(self._conninfo, self._application_name, role=self._role)
            register_packed_arrays(connection)
            self._open.append(connection)
            self._local.connection = connection
            self._local.renewals = renewals
        return connection
