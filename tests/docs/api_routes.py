"""The tables of routes in docs/http.md, from the operations themselves; `make examples` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.api.operations import Operation
from tests.api.world import DESCRIPTION, EVERY_OPERATION

PAGE: Final = Path(__file__).parents[2] / "docs" / "http.md"
_BEGIN: Final = "<!-- routes: written by `make examples` -->\n"
_END: Final = "<!-- end of routes -->\n"


def tables() -> str:
    """A table for each tag."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for tag in DESCRIPTION.document["tags"]:
        yield f"### {tag['name']}\n\n{tag['description']}\n"
        yield "| route | id | what it does | needs |"
        yield "| --- | --- | --- | --- |"
        for one in EVERY_OPERATION:
            if one.tag == tag["name"]:
                yield f"| `{one.method} {one.path}` | `{one.name}` | {one.summary} | {_needs(one)} |"
        yield ""


def _needs(one: Operation) -> str:
    if one.permissions:
        return " or ".join(f"`{permission}`" for permission in one.permissions)
    if one.proxied:
        return "the proxy's root key"
    return "nothing" if one.other_parameters is None else "the key's own secret"


def written() -> str:
    """What the page has."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    """Write them."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}{tables()}{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    main()
