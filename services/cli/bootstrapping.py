"""A ledger without HTTP, for as long as it takes to make the first root key."""

from __future__ import annotations

import asyncio

from services.bootstrap import assemble, bootstrap_root_key
from services.cli.faults import CONFLICT, CommandError
from services.settings import Settings

_NOWHERE = "nats://127.0.0.1:9"  # a root key is no news for edges


async def bootstrap_alone(settings: Settings, database_url: str) -> str | None:
    """The secret of the first root key, if it was made here; needs the partition to be free."""
    async with assemble(settings, database_url, settings.nats_url or _NOWHERE) as assembled:
        stop = asyncio.Event()
        running = asyncio.create_task(assembled.ledger.run(stop))
        try:
            secret = await bootstrap_root_key(assembled.ledger, settings)
            if assembled.ledger.owner:
                return secret
        finally:
            stop.set()
            await running
    raise CommandError(
        "A ledger process runs on this database: make further root keys with `keyledger keys create --root`.",
        code="ledger_runs",
        exit_code=CONFLICT,
    )
