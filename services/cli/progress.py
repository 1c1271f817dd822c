"""Progress of long commands: a bar on a terminal, a line every few seconds elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import click

from services.cli.colours import colour_of

LINE_SECONDS: Final = 5.0
"""The least time between two lines; a quick command prints none."""

Tell = Callable[[int], None]
"""Takes how much is done so far."""


@contextmanager
def progress(what: str, total: int, unit: str) -> Generator[Tell]:
    """Show the progress of `what`, while it is done."""
    if sys.stderr.isatty():
        with _bar(what, total, unit) as tell:
            yield tell
    else:
        yield Lines(what, total, unit)


@contextmanager
def _bar(what: str, total: int, unit: str) -> Generator[Tell]:
    from rich.console import Console  # noqa: PLC0415 - a quick start
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True, color_system="auto" if colour_of(sys.stderr) else None)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True),
    )
    # The bar is removed when the work is done: then the answer follows.
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)


class Lines:
    """Progress for logs: a line every few seconds."""

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._clock = clock
        self._write = write
        self._told_at = clock()

    def __call__(self, done: int) -> None:
        """Report how much is done so far."""
        now = self._clock()
        if now - self._told_at < LINE_SECONDS:
            return
        self._told_at = now
        share = f" ({done * 100 // self._total} %)" if self._total else ""
        self._write(f"{self._what}: {done:,} of {self._total:,} {self._unit}{share}")
