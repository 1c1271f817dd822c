"""A ledger without HTTP, for as long as it takes to create the first root key."""

from __future__ import annotations

import asyncio

from services.bootstrap import assemble, bootstrap_root_key
from services.cli.faults import CONFLICT, CommandError
from services.settings import Settings

_NOWHERE = "nats://127.0.0.1:9"  # edges need not learn of a root key


async def bootstrap_alone(settings: Settings, database_url: str) -> str | None:
    """The secret of the first root key, if it was created here; no other process may own the partition."""
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
        "A ledger process runs on this database: create more root keys with `keyledger keys create --root`.",
        code="ledger_runs",
        exit_code=CONFLICT,
    )
