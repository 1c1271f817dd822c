"""One bad thing that an operation is asked, and what makes a good request bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.api.operations.document import Described
from tests.api.operations.goods import Request, Stocked

Make = Callable[[Stocked, Request], Request]
"""Makes a good request bad."""


@dataclass(frozen=True)
class Bad:
    """One bad thing, in one of the ways that it may come."""

    thing: str
    way: str
    make: Make
    status: int
    code: str
    field: str | None = None
    """What the answer must name; None: the request as a whole is wrong."""
    of_item: bool = False
    """Is it one of many? Then it is refused alone."""


def shows(name: str, value: str) -> Make:
    """Has this header, and no other of its name."""
    return lambda _, good: good.with_header(name, value)


def says(name: str, *values: str) -> Make:
    """Has this header, too, once for each value."""
    return lambda _, good: replace(good, headers=(*good.headers, *((name, value) for value in values)))


def asks(name: str, *values: str) -> Make:
    """Has this parameter in its query, too, once for each value."""
    return lambda _, good: replace(good, query=(*good.query, *((name, value) for value in values)))


def is_at(one: Described, name: str, value: str) -> Make:
    """Has this id in its path, in place of the one that stands there."""
    before, _, behind = one.path.partition(f"{{{name}}}")

    def make(_: Stocked, good: Request) -> Request:
        start = good.path[: _length(good.path, before)]
        rest = good.path[len(start) :].partition("/")
        return replace(good, path=f"{start}{value}{behind and '/' + rest[2]}")

    return make


def _length(path: str, template: str) -> int:
    """How much of a path stands for this beginning of its template."""
    parts = path.split("/")[: template.count("/")]
    return len("/".join(parts)) + 1
