"""Connections to NATS: a dead or frozen server is noticed within a second."""

from __future__ import annotations

from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error

from keyledger_edge._nats import abandon

_CONNECT_SECONDS: Final = 2
_SECONDS_BETWEEN_TRIES: Final = 0.05
# Measured: with nats-py's defaults a stopped server is noticed after minutes; with these after 0.7 s.
_PING_SECONDS: Final = 0.25
_MOST_PINGS_OUT: Final = 2
_FLUSH_SECONDS: Final = 2.0


class NatsUnreachableError(Exception):
    """No NATS server answers."""


async def connect_once(url: str, name: str, *, most_pending_bytes: int) -> Client:
    """A connection that never reconnects by itself: once lost, it stays lost.

    For callers that must know exactly what was sent: nats-py's own reconnecting sends what it had
    buffered, and hangs for 10 s and more if the server is frozen.
    """
    errors: list[Exception] = []

    async def remember(error: Exception) -> None:
        """Do not log, as nats-py would: errors also show as exceptions and as missing answers."""
        errors[:] = [error]

    client = Client()
    # (nats-py declares whole seconds here, but accepts fractions.)
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
            max_reconnect_attempts=1,  # also limits the attempts of the first connection
            connect_timeout=_CONNECT_SECONDS,
            max_outstanding_pings=_MOST_PINGS_OUT,
            pending_size=most_pending_bytes,
            error_cb=remember,
            **pauses,
        )
    except BaseException as error:
        await abandon(client)  # a refused or cancelled connect may have opened a socket
        if isinstance(error, (OSError, Error)):
            raise NatsUnreachableError(reason(errors[0] if errors else error)) from error
        raise
    return client


def reason(error: Exception) -> str:
    """NATS's error, for a message to the operator; some of its errors have no text."""
    return f"NATS: {str(error) or type(error).__name__}"


def _servers(url: str) -> list[str]:
    return [server.strip() for server in url.split(",")]
