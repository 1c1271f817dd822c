"""The HTTP server: where it listens, how it says that it cannot, and how it stops."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.api.serving.server import CannotListenError, address_of, listen, listen_unix, serve


async def slow(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await receive()
    await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


def test_a_busy_port_is_told_in_a_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(CannotListenError, match=rf"^Port {port} on 127\.0\.0\.1 is in use .* --port\.$"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    "host,port", [("203.0.113.1", 0), ("no such host.invalid", 0), ("127.0.0.1", 70_000)]
)
def test_an_address_that_cannot_be_had_is_told(host: str, port: int) -> None:
    with pytest.raises(CannotListenError):
        listen(host, port)


def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    listen_unix(path).close()

    with listen_unix(path) as listener:
        assert address_of(listener) == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660


def test_a_socket_in_use_a_file_and_a_long_path_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with listen_unix(tmp_path / "used.sock"):
        for path, said in (
            (tmp_path / "used.sock", "in use"),
            (file, "not a socket"),
            (tmp_path / ("x" * 120), "shorter"),
        ):
            with pytest.raises(CannotListenError, match=said):
                listen_unix(path)


async def test_what_is_under_way_is_finished_before_the_server_stops() -> None:
    listener, stop, started = listen("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    address = address_of(listener)

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(serve(slow, [listener], stop, on_started=on_started))
    await started.wait()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(address))
        await asyncio.sleep(0.1)
        stop.set()
        reply = await asking
        assert (reply.status, await reply.text()) == (200, "done")
        assert "server" not in reply.headers
    await asyncio.wait_for(serving, 5)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener_name(address), timeout=1)


def listener_name(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("http://").rpartition(":")
    return host, int(port)
