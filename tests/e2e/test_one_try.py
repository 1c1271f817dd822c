"""Real processes: a client that hung up on one that was paused is not charged when it wakes up."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tests.e2e.ledgers import Place, place, until

PAUSE_SECONDS = 0.5
"""Longer than the two processes take to be told of anything."""


def ask(place: Place, address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request as the root key; status and JSON."""
    headers = {"Authorization": f"Bearer {place.environment['KEYLEDGER_API_KEY']}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(address + path, data, headers, method=method), timeout=20) as reply:  # our own
            return reply.status, json.loads(reply.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def send_and_hang_up(place: Place, address: str, body: Any) -> None:
    """The kernel takes it for the process, which is paused."""
    parts = urlsplit(address)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/charges HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(data)}\r\n"
        f"Authorization: Bearer {place.environment['KEYLEDGER_API_KEY']}\r\n\r\n"
    )
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=5) as connection:
        connection.sendall(head.encode() + data)


def test_a_try_that_slept_with_its_process_is_not_charged_behind_a_refusal(
    database: str, nats_url: str
) -> None:
    with place(KEYLEDGER_DATABASE_URL=database, KEYLEDGER_NATS_URL=nats_url) as here:
        here.ask("migrate")
        here.ask("bootstrap", "--file", "root-key")
        here.environment["KEYLEDGER_API_KEY"] = (here.folder / "root-key").read_text()
        here.start("serve")
        owner = here.told["api"]
        beside = here.start("serve", "--no-worker")
        other = here.told["api"]
        keyspace = until(lambda: _made(here, owner, "/v1/keyspaces", {"name": "Gateway"}))
        organization = _made(here, owner, "/v1/organizations", {"name": "Acme"})
        new = {"name": "Checkout", "keyspace_id": keyspace, "organization_id": organization}
        status, made = ask(here, owner, "POST", "/v1/keys", new)
        assert status == 201, made
        use = {"key_id": made["key"]["id"], "amount_micros": 10}
        until(lambda: ask(here, other, "POST", "/v1/charges", {**use, "request_id": "r0"})[0] == 402)

        os.kill(beside.pid, signal.SIGSTOP)
        try:
            send_and_hang_up(here, other, {**use, "request_id": "r1"})
            refused, why = ask(here, owner, "POST", "/v1/charges", {**use, "request_id": "r1"})
            wallet = f"/v1/organizations/{organization}/wallet"
            paid, _ = ask(
                here, owner, "POST", f"{wallet}/credits", {"amount_micros": 100, "reference": "top-up"}
            )
        finally:
            os.kill(beside.pid, signal.SIGCONT)
        charged, _ = ask(here, other, "POST", "/v1/charges", {**use, "request_id": "r2"})
        time.sleep(PAUSE_SECONDS)
        again, anew = ask(here, other, "POST", "/v1/charges", {**use, "request_id": "r1"})

        assert (refused, why["code"], paid, charged) == (402, "billing_shortfall", 201, 201)
        # Had the sleeping try been charged, this one would be its replay.
        assert (again, anew["replayed"], anew["wallet"]["balance_micros"]) == (201, False, 80)


def _made(place: Place, address: str, path: str, body: Any) -> str | None:
    status, made = ask(place, address, "POST", path, body)
    found: str | None = made["id"] if status == 201 else None
    return found
