"""Notifications of PostgreSQL (NOTIFY), each of which carries a position of the log.

psycopg's own `notifies()` makes a future, a timer and a registration with the event loop for each,
which took a tenth of the ledger's time while it processed charges. Here they are read from the socket.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg import AsyncConnection

from keyledger_reading.notices import Hear, arrived, tell


async def listen(connection: AsyncConnection[Any], channel: str, hear: Hear) -> None:
    """Listen on this channel, and call `hear` with each position that arrives with a statement's answer."""
    connection.add_notify_handler(lambda notice: tell(notice.payload, hear))
    await connection.execute(f'LISTEN "{channel}"'.encode())


async def hear_for(connection: AsyncConnection[Any], hear: Hear, seconds: float) -> None:
    """Call `hear` with each position that arrives within so many seconds.

    The connection must not be used for anything else meanwhile. Raises psycopg.OperationalError when the
    connection breaks.
    """
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[psycopg.Error] = loop.create_future()
    pgconn = connection.pgconn

    def take() -> None:
        try:
            for payload in arrived(pgconn):
                tell(payload, hear)
        except psycopg.Error as error:
            loop.remove_reader(socket)
            if not broken.done():
                broken.set_result(error)

    socket = pgconn.socket
    loop.add_reader(socket, take)
    try:
        take()  # what arrived with the last answer, after it
        await asyncio.wait({broken}, timeout=seconds)
    finally:
        loop.remove_reader(socket)
    if broken.done():
        raise broken.result()
