"""Changes, for people: who did what, and what it was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from services.cli.amounts import clock_time
from services.cli.http import Document
from services.cli.session import Session
from services.cli.words import words, wrapped


def tell_changes(session: Session, entries: Iterable[Document], *, of: bool, empty: str) -> None:
    """Print a paragraph for each, as wide as the terminal; with `of` also the subject of each change."""
    told = False
    for entry in entries:
        told = True
        for line in _paragraph(entry, of=of):
            for part in wrapped(line, session.width):
                session.say(part)
    if not told:
        session.say(empty)


def _paragraph(entry: Document, *, of: bool) -> Iterator[str]:
    subject = entry.get("key_id") or entry.get("subject") if of else None
    yield "  ".join(one for one in (clock_time(entry["at"]), str(entry["action"]), subject) if one)
    place = f" from {entry['ip']}" if entry.get("ip") else ""
    yield f"  by {entry.get('actor') or 'unknown'}{place}, position {entry['position']}"
    yield from (f"  {line}" for line in differences(entry.get("before"), entry.get("after")))
    if entry.get("reason"):
        yield f"  reason: {entry['reason']}"


def differences(before: Document | None, after: Document | None) -> Iterator[str]:
    """`quotas: 20.00 a month (was 10.00 a month)`, a line for each changed field that is not empty."""
    was, now = before or {}, after or {}
    for name in now | was:
        new, old = now.get(name), was.get(name)
        if name in was and name in now:
            yield f"{_label(name)}: {words(new, name)} (was {words(old, name)})"
        elif name in was:
            yield f"{_label(name)}: was {words(old, name)}"
        elif not _says_nothing(new):
            yield f"{_label(name)}: {words(new, name)}"


def _label(name: str) -> str:
    return name.removesuffix("_micros").removesuffix("_id").replace("_", " ")


def _says_nothing(value: Any) -> bool:
    return value is None or value in ([], {}, "") or value is False
