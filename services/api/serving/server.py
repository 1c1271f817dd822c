"""The HTTP server: uvicorn with httptools and uvloop, on a given socket, stopped gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Final, TypeVar

import uvicorn

from services.api.serving.at_once import AnswersAtOnce, AtOnceProtocol
from services.api.serving.bounded import BoundedConfig, BoundedProtocol
from services.api.serving.connection_bounds import Connections

T = TypeVar("T")

_BACKLOG: Final = 2048
_HIGHEST_PORT: Final = 65_535
_KEEP_ALIVE_SECONDS: Final = 75
_GRACE_SECONDS: Final = 5
_LONGEST_UNIX_PATH: Final = 107


class CannotListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the code that starts the server decides when it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListenError, which says why there is none."""
    if not 0 <= port <= _HIGHEST_PORT:
        raise CannotListenError(f"{port} is not a port: choose one up to {_HIGHEST_PORT}.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise CannotListenError(f"{host} is not an address of this machine.") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListenError(_why(error, host, port)) from None
    listener.setblocking(False)
    return listener


def _why(error: Exception, host: str, port: int) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program: stop it, or choose another --port."
    if number == errno.EACCES:
        return f"Port {port} needs more rights than this user has: choose one above 1023."
    if number == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine."
    return f"{host}:{port} cannot be listened on: {error}."


def listen_unix(path: Path, mode: int = 0o660) -> socket.socket:
    """A listening unix socket; one that a dead process left behind is replaced."""
    text = str(path)
    if len(os.fsencode(text)) > _LONGEST_UNIX_PATH:
        raise CannotListenError(f"A socket's path may have {_LONGEST_UNIX_PATH} bytes: use a shorter one.")
    _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(text)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListenError(f"{path} cannot be listened on: {error.strerror}.") from None
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _remove_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotListenError(f"{path} exists and is not a socket.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise CannotListenError(f"{path} is in use by another program.")


def address_of(listener: socket.socket) -> str:
    """Where a listening socket is reached: a URL, or `unix:<path>`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def _config_of(app: Any, connections: Connections, *, bounded: bool, grace_seconds: int) -> BoundedConfig:
    usual: Any = BoundedProtocol if bounded else "httptools"
    return BoundedConfig(
        app,
        connections=connections,
        http=AtOnceProtocol if isinstance(app, AnswersAtOnce) else usual,
        ws="none",
        lifespan="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        # The ledger's own setting of trusted proxies decides whose X-Forwarded-For is trusted.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
        backlog=_BACKLOG,
    )


async def serve(
    app: Any,
    listeners: list[socket.socket],
    stop: asyncio.Event,
    *,
    on_started: Callable[[], Awaitable[None]] | None = None,
    grace_seconds: int = _GRACE_SECONDS,
    connections: Connections | None = None,
    bounded: bool = True,
) -> None:
    """Serve until `stop` is set; then finish the requests that have begun, within the grace period.

    `connections` bounds what clients may use, with the usual bounds if it is not given. Not
    `bounded` is uvicorn's own protocol: the baseline of the benchmarks.
    """
    connections = connections or Connections()
    config = _config_of(app, connections, bounded=bounded, grace_seconds=grace_seconds)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=listeners), name="http")
    stopping = asyncio.create_task(stop.wait(), name="http-stop")
    watching = asyncio.create_task(connections.watch(), name="http-connections")
    try:
        while not (server.started or serving.done() or stop.is_set()):  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        if server.started and on_started is not None:
            await on_started()
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        try:
            await serving
        finally:
            watching.cancel()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's coroutine on uvloop, if it is available."""
    try:
        import uvloop  # noqa: PLC0415  # not on Windows
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
