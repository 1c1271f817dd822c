"""Files of many entries: JSON lines, a JSON list, or CSV with a heading."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from services.cli.faults import WRONG_USAGE, CommandError
from services.cli.http import Document


def read_entries(file: Path) -> list[Document]:
    """The entries of a file; `-` is standard input."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        begin = text.lstrip()[:1]
        if begin == "[":
            return msgspec.json.decode(text, type=list[dict[str, Any]])
        if begin == "{":
            return list(_out_of_lines(text))
        return list(_out_of_rows(text))
    except (OSError, ValueError, csv.Error) as error:
        raise CommandError(
            f"{file} is neither CSV with a heading nor JSON: {error}.", code="usage", exit_code=WRONG_USAGE
        ) from None


def _out_of_lines(text: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise ValueError(f"line {number}: {error}") from None


def _out_of_rows(text: str) -> Iterator[Document]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more fields than the heading")
        yield _out_of_row(row)


def _out_of_row(row: dict[str, str]) -> Document:
    entry: Document = {}
    for name, value in row.items():
        if not value:
            continue
        entry[name.strip()] = (
            [one.strip() for one in value.split(";")] if name.strip() == "tags" else value.strip()
        )
    return entry
