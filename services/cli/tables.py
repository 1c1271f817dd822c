"""Tables for people, as wide as the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.colours import colour_of

_WIDTH_WITHOUT_TERMINAL: Final = 240  # a table in a pipe should have whole rows
_GAP: Final = 2

_STYLES: Final = {
    "active": "green",
    "valid": "green",
    "ok": "green",
    "disabled": "yellow",
    "expired": "yellow",
    "suspended": "yellow",
    "archived": "yellow",
    "attention": "yellow",
    "revoked": "red",
    "broken": "red",
    "REFUSES": "red",
}


class _Column(NamedTuple):
    """A heading, the cells under it, and the least width at which they can still be read and copied."""

    heading: str
    right: bool
    optional: bool
    cells: list[str]

    @property
    def most(self) -> int:
        """The width at which nothing is wrapped."""
        return max(len(one) for one in (self.heading, *self.cells))

    @property
    def least(self) -> int:
        """The width at which no word is cut: an id must be copied, a number be read."""
        longest = max((len(word) for cell in self.cells for word in cell.split()), default=0)
        return max(longest, max(map(len, self.heading.split()), default=0))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Print rows under their headings; if there is no room for that, print each row as a paragraph."""
    room = width or _room()
    shown = _that_fit(_columns(columns, rows), room)
    console = Console(
        width=room,
        markup=False,
        highlight=False,
        emoji=False,
        color_system="auto" if colour_of(sys.stdout) else None,
    )
    console.print(_table(shown, room) if _least(shown) <= room else _paragraphs(shown), soft_wrap=False)


def _room() -> int:
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return _WIDTH_WITHOUT_TERMINAL


def _columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[_Column]:
    cells = [[row[index] for row in rows] for index in range(len(columns))]
    return [
        _Column(name.lstrip("+?"), name.startswith("+"), name.startswith("?"), below)
        for name, below in zip(columns, cells, strict=True)
    ]


def _least(columns: Sequence[_Column]) -> int:
    return sum(one.least + _GAP for one in columns)


def _that_fit(columns: list[_Column], room: int) -> list[_Column]:
    """The columns that fit: optional ones are left out, the last first, for as long as they are too wide."""
    shown = list(columns)
    for one in reversed(columns):
        if one.optional and _least(shown) > room:
            shown.remove(one)
    return shown


def _widths(columns: Sequence[_Column], room: int) -> list[int]:
    """Widths without wrapping if there is room; else the rest goes to the columns that would wrap most."""
    widths = [one.least for one in columns]
    for _ in range(room - _least(columns)):
        wanting = [one.most - width for one, width in zip(columns, widths, strict=True)]
        if max(wanting) == 0:
            break
        widths[wanting.index(max(wanting))] += 1
    return widths


def _table(columns: Sequence[_Column], room: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for one, width in zip(columns, _widths(columns, room), strict=True):
        table.add_column(one.heading, overflow="fold", width=width, justify="right" if one.right else "left")
    for row in zip(*(one.cells for one in columns), strict=True):
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def _paragraphs(columns: Sequence[_Column]) -> Text:
    margin = max(len(one.heading) for one in columns)
    rows = zip(*(one.cells for one in columns), strict=True)
    return Text("\n\n").join(
        Text("\n").join(
            Text.assemble((f"{one.heading:<{margin}}", "bold"), "  ", (cell, _STYLES.get(cell, "")))
            for one, cell in zip(columns, row, strict=True)
        )
        for row in rows
    )
