"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 240  # whoever pipes a table wants whole rows

_STYLES = {
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
}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their headings, as wide as they need to be."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        # An id is copied: it folds on a narrow terminal, and is never cut off.
        table.add_column(column, overflow="fold", justify="right" if column.startswith("+") else "left")
        table.columns[-1].header = column.removeprefix("+")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)
