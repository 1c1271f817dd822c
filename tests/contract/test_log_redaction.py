"""A running ledger takes the secrets of its own keyspaces out of its log lines."""

import asyncio
import contextlib

from domain.commands import DefineKeyspace
from domain.desk import SYSTEM_ASKING
from infra.postgres.migrate import migrate
from keyledger_edge import SecretFormat, SecretShape
from services.api.serving.server import listen
from services.bootstrap import Assembled, run_server
from services.redaction import for_the_log
from services.settings import Settings
from tests.servers import database as database
from tests.servers import nats_server as nats_server
from tests.servers import nats_url as nats_url
from tests.servers import postgres_server as postgres_server


async def test_a_keyspace_made_while_it_runs_is_known_to_the_log(database: str, nats_url: str) -> None:
    migrate(database)
    shape = SecretShape(prefix="acme_live_", format=SecretFormat(length=30, checksum="crc32"))
    line = f"failed: {shape.generate()}, trace {'5e' * 16}"
    stop, told = asyncio.Event(), []

    async def make_a_keyspace(parts: Assembled) -> None:
        while not parts.ledger.confirmed:
            await asyncio.sleep(0.01)
        told.append(for_the_log(line))
        command = DefineKeyspace(name="Acme", preset="default", prefix="acme_live_")
        await parts.ledger.execute(command, SYSTEM_ASKING)
        told.append(for_the_log(line))
        stop.set()

    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        await run_server(Settings(), database, nats_url, stop, listeners=[listener], on_ready=make_a_keyspace)

    before, after = told
    assert before == line
    assert after == f"failed: acme_live_[redacted], trace {'5e' * 16}"
    assert for_the_log(line) == line
