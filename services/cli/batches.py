"""Many entries in batches: each has its own result; those that the ledger could not do are sent again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from services.cli.faults import CommandError
from services.cli.http import Document
from services.cli.progress import progress
from services.cli.session import Session

# A thousand are allowed, but a ledger that is busy with that many may miss its lease, and refuse the rest.
AT_ONCE: Final = 250
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.5
_UNAVAILABLE: Final = 503


def send_in_batches(
    session: Session, path: str, entries: Sequence[Document], *, what: str, unit: str, named: bool
) -> list[Document]:
    """The result of each entry, in the order in which they were given."""
    results: list[Document] = []
    with progress(what, len(entries), unit) as tell:
        for start in range(0, len(entries), AT_ONCE):
            try:
                results += _send(session, path, entries[start : start + AT_ONCE], named=named)
            except CommandError:
                if results and not session.as_json:
                    session.note(
                        f"{len(results):,} of {len(entries):,} {unit} were answered before this error. "
                        "Run the same command again: nothing counts twice."
                    )
                raise
            tell(len(results))
    return results


def _send(session: Session, path: str, entries: Sequence[Document], *, named: bool) -> list[Document]:
    """Send one batch, and again those of its entries that the ledger could not do."""
    results: dict[int, Any] = {}
    left = list(range(len(entries)))
    for attempt in range(1, _TRIES + 1):
        asked = {"items": [entries[index] for index in left]}
        results |= dict(zip(left, session.ledger.post(path, asked, named=named)["results"], strict=True))
        left = [index for index in left if results[index]["status"] == _UNAVAILABLE]
        if not left:
            break
        time.sleep(_PAUSE_SECONDS * attempt)
    return [results[index] for index in range(len(entries))]
