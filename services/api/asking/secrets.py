"""Finds secrets, so that they are never shown, stored or logged; the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from domain.state import Books
from keyledger_language import SecretShape, redact
from services.redaction import SHORTEST_SECRET, may_hold_secret, without_long_runs


class Redactor:
    """Removes secrets of all keyspaces from text that is shown or logged.

    A process that does not own the partition may not know a keyspace yet. While it is not `sure` to
    know them all, everything that could be a secret is treated as one.
    """

    def __init__(self, books: Books, sure: Callable[[], bool]) -> None:
        self._books = books
        self._sure = sure
        self._known: tuple[int, tuple[SecretShape, ...]] = (-1, ())

    @property
    def shapes(self) -> tuple[SecretShape, ...]:
        """The shapes of the secrets of all keyspaces."""
        # In one step: log lines are also written in other threads.
        keyspaces = tuple(self._books.keyspaces.values())
        mark = sum(keyspace.version for keyspace in keyspaces)
        known = self._known
        if known[0] != mark:
            known = self._known = (
                mark,
                tuple(known_shapes(one.shape for one in keyspaces if not one.archived)),
            )
        return known[1]

    def redact(self, text: str) -> str:
        """The text without secrets."""
        if not may_hold_secret(text):
            return text
        told = redact(text, self.shapes)
        return told if self._sure() else without_long_runs(told)

    def holds_secret(self, text: str) -> bool:
        """Whether it contains what looks like a secret of a keyspace that is known here."""
        if len(text) < SHORTEST_SECRET:
            return False
        return may_hold_secret(text) and any(shape.anywhere.search(text) for shape in self.shapes)

    def may_be_shown(self, text: str) -> bool:
        """Whether it certainly contains no secret."""
        return self.redact(text) == text


def known_shapes(shapes: Iterable[SecretShape]) -> Iterator[SecretShape]:
    """Shapes that can be told from other text: those of imported secrets only if they have a prefix."""
    for shape in shapes:
        accepted = tuple(one for one in shape.accepted if one.prefix)
        yield (
            shape
            if accepted == shape.accepted
            else SecretShape(prefix=shape.prefix, format=shape.format, accepted=accepted)
        )
