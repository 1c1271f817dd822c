"""The report of the demo: one sentence for each thing that happens, compared with what was promised."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

Tell = Callable[[str], Any]


class DemoRefusedError(Exception):
    """The office was refused a request that must be allowed."""


class ClientAnswer(NamedTuple):
    """The answer that a client received."""

    status: int
    code: str
    headers: dict[str, str]
    body: dict[str, Any]


class Line(NamedTuple):
    """One sentence of the report, and whether it came true."""

    chapter: str
    sentence: str
    promised: str
    came: str
    kept: bool


class Story:
    """The report, printed line by line; collects what was not as promised."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell or (lambda _: None)
        self._chapter = ""
        self._began = time.monotonic()
        self.lines: list[Line] = []

    @property
    def failures(self) -> list[Line]:
        """What was not as promised."""
        return [line for line in self.lines if not line.kept]

    def chapter(self, title: str, about: str) -> None:
        """Begin with another gateway."""
        self._chapter = title
        self._tell(f"\n{title}\n  {about}")

    def told(self, sentence: str) -> None:
        """Report something that happens, without a promise."""
        self._tell(f"       {sentence}")

    def promise(self, sentence: str, promised: Any, came: Any) -> None:
        """Report something that must be as promised."""
        kept = promised == came
        self.lines.append(Line(self._chapter, sentence, str(promised), str(came), kept))
        if kept:
            self._tell(f"  ok   {sentence}")
        else:
            self._tell(f"  NOT  {sentence}: promised {promised}, got {came}")

    def answered(self, sentence: str, answer: ClientAnswer, status: int, code: str = "valid") -> None:
        """Report a client's request, which must have this answer."""
        what = f"{status} {code}" if code != "valid" else str(status)
        self.promise(f"{what:<27} {sentence}", (status, code), (answer.status, answer.code))

    def end(self) -> None:
        """Print the result."""
        seconds = time.monotonic() - self._began
        kept = len(self.lines) - len(self.failures)
        self._tell(f"\n{kept} of {len(self.lines)} promises kept, in {seconds:.1f} s.")

    def document(self) -> dict[str, Any]:
        """The whole report as JSON."""
        return {
            "kept": len(self.lines) - len(self.failures),
            "broken": len(self.failures),
            "lines": [line._asdict() for line in self.lines],
        }
