"""Notifications of PostgreSQL (NOTIFY), as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection


async def hear_for(connection: AsyncConnection[Any], hear: Callable[[str], None], seconds: float) -> None:
    """Tell `hear` the payload of each notification that comes within so many seconds.

    Those that come with the answer to a statement are the connection's notify handlers'. Nothing else may
    be asked of the connection meanwhile. Raises psycopg.OperationalError when the connection breaks.

    psycopg's own `notifies()` makes a future, a timer and a registration with the event loop for each,
    which took a tenth of the ledger's time while it was charged.
    """
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[psycopg.Error] = loop.create_future()
    pgconn = connection.pgconn

    def take() -> None:
        try:
            pgconn.consume_input()
            while (notice := pgconn.notifies()) is not None:
                hear(notice.extra.decode())
        except psycopg.Error as error:
            loop.remove_reader(socket)
            if not broken.done():
                broken.set_result(error)

    socket = pgconn.socket
    loop.add_reader(socket, take)
    try:
        take()  # what came with the last answer, behind it
        await asyncio.wait({broken}, timeout=seconds)
    finally:
        loop.remove_reader(socket)
    if broken.done():
        raise broken.result()
