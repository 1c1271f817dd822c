"""`keyledger edge`: the sidecar, on loopback or a unix socket."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path
from typing import Any, Final

import click

from services.cli.faults import WRONG_USAGE, CommandError
from services.cli.main import examples
from services.cli.running import sentences, stop_on_signals
from services.cli.session import Session, local

_DEFAULT_LISTEN: Final = "127.0.0.1:8701"


@click.command(
    "edge",
    **examples(
        "KEYLEDGER_EDGE_KEY=kl_root_... keyledger edge --ledger https://keys.example.com",
        "keyledger edge --listen unix:/run/keyledger/edge.sock --keyspace ks_01J...",
    ),
)
@click.option("--listen", "place", default=_DEFAULT_LISTEN, show_default=True, help="host:port or unix:path.")
@click.option("--ledger", help="The ledger's address [KEYLEDGER_URL].")
@click.option(
    "--keyspace", "keyspaces", multiple=True, help="A keyspace to serve; all that it may read if not given."
)
@click.option(
    "--capacity",
    type=click.IntRange(1_000),
    default=1_000_000,
    help="How many keys to keep in memory at most.",
)
@click.option(
    "--serve-stale-ms",
    type=click.IntRange(0),
    default=0,
    help="Keep answering for this long after the lease has ended; a revoked key may work that much longer.",
)
@click.option("--anyone", is_flag=True, help="Allow an address that other machines reach: anyone may ask.")
@local
def edge(
    session: Session,
    place: str,
    ledger: str | None,
    keyspaces: tuple[str, ...],
    capacity: int,
    serve_stale_ms: int,
    anyone: bool,
) -> None:
    """Run a sidecar that answers near the traffic: /v1/verify and /v1/forward-auth, from memory.

    Its callers need no root key, so it listens on loopback or on a unix socket. It uses a
    root key with `edges:connect`, in KEYLEDGER_EDGE_KEY.
    """
    settings = session.settings
    if settings.edge_key is None:
        raise CommandError(
            "An edge needs a root key with `edges:connect`: set KEYLEDGER_EDGE_KEY.",
            code="invalid_setting",
            exit_code=WRONG_USAGE,
        )
    with sentences():
        from keyledger_edge import Sidecar, Verifier  # noqa: PLC0415 - a quick start
        from services.api.serving.connection_bounds import Connections, bounds_of  # noqa: PLC0415 - a quick start
        from services.api.serving.server import address_of, run, serve  # noqa: PLC0415 - a quick start
        from services.cli.logs import configure_logs  # noqa: PLC0415 - a quick start
        from services.redaction import kept_out_of_logs, without_long_runs  # noqa: PLC0415 - a quick start

        configure_logs(settings)
        listener = _listen(place, anyone=anyone)
        verifier = Verifier.at(
            ledger or settings.url,
            settings.edge_key,
            keyspace_ids=keyspaces,
            capacity=capacity,
            serve_stale_ms=serve_stale_ms,
            name="sidecar",
        )
        connections = Connections(bounds_of(settings))
        sidecar = Sidecar(
            verifier,
            keyspace_id=keyspaces[0] if len(keyspaces) == 1 else None,
            trusted_proxies=settings.trusted_proxies,
            server_metrics=connections.exposition,
        )

        async def announce() -> None:
            _say(session, address_of(listener), ledger or settings.url)

        async def work() -> None:
            stop = stop_on_signals()
            await serve(sidecar, [listener], stop, on_started=announce, connections=connections)

        # An edge knows its own keyspaces, but may receive a secret of any keyspace.
        with kept_out_of_logs(without_long_runs):
            run(work())


def _say(session: Session, address: str, ledger: str) -> None:
    told: dict[str, Any] = {"edge": address, "ledger": ledger}
    click.echo(json.dumps(told) if session.as_json else f"The edge answers at {address}, for {ledger}.")


def _listen(place: str, *, anyone: bool) -> socket.socket:
    from services.api.serving.server import listen, listen_unix  # noqa: PLC0415 - a quick start

    if place.startswith("unix:"):
        return listen_unix(Path(place.removeprefix("unix:")))
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise CommandError(
            f"{place} is not an address: write host:port or unix:path.", code="usage", exit_code=WRONG_USAGE
        )
    if not (anyone or _is_loopback(host)):
        raise CommandError(
            f"{host} can be reached from other machines, and a sidecar asks its callers for no key: "
            "listen on 127.0.0.1 or on a unix socket, or give --anyone.",
            code="usage",
            exit_code=WRONG_USAGE,
        )
    return listen(host, int(port))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
