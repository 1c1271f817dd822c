"""The edge's side of NATS: requests out, grants and changes in. Only this module uses nats-py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from keyledger_language.messages import CHANGES_SUBJECT, GRANT_SUBJECT, LEASE_SUBJECT, ConnectAnswer

_CONNECT_SECONDS: Final = 2
_CLOSE_SECONDS: Final = 0.5
_MAX_UNSENT: Final = 64 * 1024


class BusUnreachableError(Exception):
    """No NATS server answers."""


class NatsConnection:
    """One connection to NATS. A lost one never reconnects, so a missed message cannot go unnoticed."""

    def __init__(self, client: Client, root_key_id: str) -> None:
        self._client = client
        self._lease_subject = f"{LEASE_SUBJECT}.{root_key_id}"

    @classmethod
    async def connect(
        cls, terms: ConnectAnswer, on_grant: Callable[[bytes], None], on_changes: Callable[[bytes], None]
    ) -> NatsConnection:
        """Connect and subscribe; BusUnreachableError if no server answers."""

        async def ignore(_error: Exception) -> None:
            """Do not log, as nats-py would: errors show as exceptions and as missing grants."""

        async def hear_grant(message: Msg) -> None:
            on_grant(message.data)

        async def hear_changes(message: Msg) -> None:
            on_changes(message.data)

        client = Client()
        bus = cls(client, terms.root_key_id)
        try:
            # nats-py's own reconnecting sends buffered messages late, and hangs if a server is frozen.
            await client.connect(
                terms.nats_urls,
                name=terms.edge_id,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                connect_timeout=_CONNECT_SECONDS,
                max_outstanding_pings=2,
                pending_size=_MAX_UNSENT,
                error_cb=ignore,
                **_options(terms),
            )
            await client.subscribe(f"{GRANT_SUBJECT}.{terms.root_key_id}.{terms.edge_id}", cb=hear_grant)
            await client.subscribe(CHANGES_SUBJECT, cb=hear_changes)
            await client.flush(_CONNECT_SECONDS)
        except BaseException as error:
            await bus.close()  # a refused or cancelled connect may have opened a socket
            if isinstance(error, (TimeoutError, OSError, Error)):
                raise BusUnreachableError(type(error).__name__) from None
            raise
        return bus

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return bool(self._client.is_connected)

    async def say(self, data: bytes) -> None:
        """Send a request or an acknowledgement. It may be lost."""
        with contextlib.suppress(OSError, Error):
            await self._client.publish(self._lease_subject, data)

    async def close(self) -> None:
        """Close the connection; a hanging server gets half a second."""
        await abandon(self._client, seconds=_CLOSE_SECONDS)


async def abandon(client: Client, *, seconds: float = 1.0) -> None:
    """Close the connection; a hanging server gets that many seconds, then the socket is dropped."""
    # nats-py can neither drop unsent data nor end its tasks when closing fails half-way, so this uses its
    # private attributes; they are read before `close`, which clears some of them.
    transport, tasks = client._transport, _tasks_of(client)  # noqa: SLF001
    closing = asyncio.ensure_future(client.close())
    # Not wait_for, which keeps waiting if a cancellation is swallowed, as nats-py does with some.
    await asyncio.wait({closing}, timeout=seconds)
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    for task in (closing, *tasks):
        task.cancel()
    await asyncio.wait({closing, *tasks}, timeout=seconds)
    for task in (closing, *tasks):
        if task.done() and not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it


def _tasks_of(client: Client) -> list[asyncio.Task[Any]]:
    tasks = [
        client._reading_task,  # noqa: SLF001
        client._ping_interval_task,  # noqa: SLF001
        client._flusher_task,  # noqa: SLF001
        *(one._wait_for_msgs_task for one in client._subs.values()),  # noqa: SLF001
    ]
    return [task for task in tasks if task is not None]


def _options(terms: ConnectAnswer) -> dict[str, Any]:
    # (nats-py declares whole seconds here, but accepts fractions.)
    return {"ping_interval": terms.ping_ms / 1000, **_credentials(terms)}


def _credentials(terms: ConnectAnswer) -> dict[str, Any]:
    if terms.nats_jwt is not None and terms.nats_seed is not None:
        jwt, seed = terms.nats_jwt.encode(), terms.nats_seed
        return {"user_jwt_cb": lambda: jwt, "signature_cb": lambda nonce: _signed(nonce, seed)}
    if terms.nats_user is not None:
        return {"user": terms.nats_user, "password": terms.nats_password}
    return {}


def _signed(nonce: str, seed: str) -> bytes:
    import base64  # noqa: PLC0415 - only if NATS checks signatures

    import nkeys  # noqa: PLC0415 - the same

    return base64.b64encode(nkeys.from_seed(seed.encode()).sign(nonce.encode()))
