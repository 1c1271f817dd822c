"""How we connect to NATS: a dead or frozen server is noticed within a second."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error

_CONNECT_SECONDS: Final = 2
_SECONDS_BETWEEN_TRIES: Final = 0.05
_CLOSE_SECONDS: Final = 1.0
# Measured: with nats-py's defaults a stopped server is noticed after minutes; with these after 0.7 s.
_PING_SECONDS: Final = 0.25
_MOST_PINGS_OUT: Final = 2
_FLUSH_SECONDS: Final = 2.0


class NatsUnreachableError(Exception):
    """No NATS server answers."""


async def connect_once(url: str, name: str, *, most_pending_bytes: int) -> Client:
    """A connection that never comes back by itself: once lost, it stays lost.

    For whoever must know exactly what was sent: nats-py's own reconnecting sends what it had
    buffered, and hangs for 10 s and more when the server is frozen.
    """
    errors: list[Exception] = []

    async def remember(error: Exception) -> None:
        """Errors reach us as exceptions and missing answers as well; nats-py would log them."""
        errors[:] = [error]

    client = Client()
    # (nats-py declares whole seconds here, and takes any.)
    pauses: dict[str, Any] = {
        "reconnect_time_wait": _SECONDS_BETWEEN_TRIES,
        "ping_interval": _PING_SECONDS,
        "flush_timeout": _FLUSH_SECONDS,
    }
    try:
        await client.connect(
            _servers(url),
            name=name,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # also rules how often the first connection is tried
            connect_timeout=_CONNECT_SECONDS,
            max_outstanding_pings=_MOST_PINGS_OUT,
            pending_size=most_pending_bytes,
            error_cb=remember,
            **pauses,
        )
    except BaseException as error:
        await abandon(client)  # who is not let in, or gives up half-way, still has a socket
        if isinstance(error, (OSError, Error)):
            raise NatsUnreachableError(reason(errors[0] if errors else error)) from error
        raise
    return client


def reason(error: Exception) -> str:
    """What NATS said, for a sentence to an operator; some of its errors say nothing."""
    return f"NATS: {str(error) or type(error).__name__}"


async def abandon(client: Client) -> None:
    """Close it; a server that hangs is given a second, then the socket is dropped."""
    # nats-py can neither drop unsent data nor end its tasks when closing fails half-way, so this reaches
    # into it; everything is taken before `close`, which forgets some of it.
    transport, tasks = client._transport, _tasks_of(client)  # noqa: SLF001
    closing = asyncio.ensure_future(client.close())
    # Not wait_for, which waits on when a cancellation is swallowed, as nats-py does with some.
    await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    for task in (closing, *tasks):
        task.cancel()
    await asyncio.wait({closing, *tasks}, timeout=_CLOSE_SECONDS)
    for task in (closing, *tasks):
        if task.done() and not task.cancelled():
            task.exception()  # seen: asyncio would log it


def _tasks_of(client: Client) -> list[asyncio.Task[Any]]:
    subscriptions = list(client._subs.values())  # noqa: SLF001
    tasks = [
        client._reading_task,  # noqa: SLF001
        client._ping_interval_task,  # noqa: SLF001
        client._flusher_task,  # noqa: SLF001
        *(subscription._wait_for_msgs_task for subscription in subscriptions),  # noqa: SLF001
    ]
    return [task for task in tasks if task is not None]


def _servers(url: str) -> list[str]:
    return [server.strip() for server in url.split(",")]
