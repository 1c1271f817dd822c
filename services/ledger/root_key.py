"""The first root key, or one that the operator gives."""

from __future__ import annotations

import structlog

from domain.commands import BootstrapRootKey
from domain.desk import SYSTEM_ASKING
from domain.keyspaces import ROOT_KEYSPACE_ID, ROOT_PREFIX, ROOT_SHAPE
from domain.state import Books
from keyledger_language import fingerprint, hint
from services.ledger.bus import Bus

log = structlog.get_logger()

_GIVEN_BESIDE_OTHERS = "KEYLEDGER_ROOT_KEY names a root key that did not exist; the others still work"


async def make_root_key(bus: Bus, books: Books, secret: str | None) -> str | None:
    """Make the first root key, or the one with this secret; return the secret if it was made here."""
    others = any(key.keyspace_id == ROOT_KEYSPACE_ID for key in books.keys.values())
    if secret is None and others:
        return None
    text = ROOT_SHAPE.generate() if secret is None else secret
    command = BootstrapRootKey(
        name="bootstrap",
        fingerprint=fingerprint(text),
        hint=hint(text, ROOT_PREFIX),
        reason=_GIVEN_BESIDE_OTHERS if others else None,
    )
    done = await bus.queue.submit(command, SYSTEM_ASKING)
    if done.wrote and others:
        log.warning("root_key.added", key_id=done.result.id, hint=command.hint, reason=_GIVEN_BESIDE_OTHERS)
    return text if secret is None else None
