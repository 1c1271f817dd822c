"""Metadata as options: `--metadata team=search`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
import msgspec

from services.cli.session import each_once, read_with


def metadata_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--metadata NAME=VALUE`, which may be repeated."""
    return click.option(
        "--metadata",
        multiple=True,
        type=read_with(pair_of),
        metavar="NAME=VALUE",
        help="Your own notes; a value that is JSON is kept as such.",
    )(function)


def pair_of(text: str) -> tuple[str, Any]:
    """`seats=5` as a name and a JSON value; ValueError if it has no name."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text} is not metadata such as team=search")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def metadata_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """All pairs together; a name that is given twice is refused."""
    return each_once(pairs, "--metadata")
