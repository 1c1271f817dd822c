"""The first root key: created so that a crash at any moment neither loses it nor creates two."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from domain.keyspaces import ROOT_KEYSPACE_ID, ROOT_SHAPE
from keyledger_language import fingerprint
from services.bootstrap import Assembled
from services.cli.root_key import FILE_NAME, read_private, write_private
from services.ledger.errors import CannotAnswerError
from services.ledger.ledger import Ledger
from services.settings import Settings

_CANDIDATE: Final = "root-key.new"
_PAUSE_SECONDS: Final = 0.1


def new_root_secret() -> str:
    """A new secret of the form that root keys have."""
    return ROOT_SHAPE.generate()


async def ensure_root_key(assembled: Assembled, settings: Settings) -> Path | None:
    """Create a root key if there is none; the file that holds the new one, or None.

    The new secret is on disk, under another name, before the ledger receives it; a start after a crash
    finds it there, and learns from the ledger whether it became the root key. Waits for as long as it
    takes until this process, or another one, owns the partition.
    """
    ledger = assembled.ledger
    while True:
        while not ledger.owner and not ledger.stands_by:  # noqa: ASYNC110 - the ledger shows it by these two
            await asyncio.sleep(0.01)
        if not ledger.owner:
            return None
        try:
            return await _ensure(ledger, settings)
        except CannotAnswerError:
            # PostgreSQL or the partition was lost meanwhile; a new secret is on disk.
            await asyncio.sleep(_PAUSE_SECONDS)


async def _ensure(ledger: Ledger, settings: Settings) -> Path | None:
    if settings.root_key is not None:
        await ledger.bootstrap(settings.root_key)
        return None
    candidate = settings.data_dir / _CANDIDATE
    secret = read_private(candidate) if candidate.is_file() else None
    known = any(key.keyspace_id == ROOT_KEYSPACE_ID for key in ledger.books.keys.values())
    if not known:
        if secret is None:
            secret = new_root_secret()
            write_private(candidate, secret)
        await ledger.bootstrap(secret)
    if secret is None:
        return None
    if ledger.facts.find(fingerprint(secret)) is None:
        candidate.unlink()
        return None
    return candidate.replace(settings.data_dir / FILE_NAME)
