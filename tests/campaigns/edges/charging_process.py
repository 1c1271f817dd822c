"""An edge that answers uses with a cost: the library in a process of its own, on a unix socket.

One line in, one line out: `{"secret", "request_id", "cost_micros"}` to the verdict, in any order.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from keyledger_edge import EdgeError, Verifier
from services.cli.running import end_with


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A use, which may have a cost; its request id is also what its answer is known by."""

    secret: str
    request_id: str
    cost_micros: int | None = None


class Told(msgspec.Struct, frozen=True):
    """What the edge said of it."""

    request_id: str
    code: str
    charge: dict[str, object] | None = None
    replayed: bool = False
    position: str | None = None
    """As of which it was decided."""


class Terms(msgspec.Struct, frozen=True):
    """What the process is given on its standard input."""

    url: str
    key: str
    keyspace_id: str
    path: str


class Server:
    """Any number of uses at once."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._verifier = Verifier.at(terms.url, terms.key, keyspace_ids=(terms.keyspace_id,))
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._verifier.start()
        server = await asyncio.start_unix_server(self._serve, self._terms.path)
        await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answering = asyncio.create_task(self._answer(msgspec.json.decode(line, type=Ask), writer))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _answer(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        try:
            if ask.cost_micros is None:
                verdict = await self._verifier.verify(ask.secret)
            else:
                verdict = await self._verifier.verify(
                    ask.secret, cost_micros=ask.cost_micros, request_id=ask.request_id
                )
            answer = verdict.as_answer()
            charge = answer.charge
            told = Told(
                ask.request_id, answer.code, charge, bool(charge and charge.get("replayed")), answer.position
            )
        except EdgeError as error:
            told = Told(ask.request_id, f"error: {error}")
        writer.write(msgspec.json.encode(told) + b"\n")


def main() -> None:
    """Serve until killed."""
    end_with(os.getppid())
    asyncio.run(Server(msgspec.json.decode(sys.stdin.buffer.read(), type=Terms)).run())


if __name__ == "__main__":
    main()
