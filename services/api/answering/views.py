"""What all JSON views share: times, positions, amounts. Each kind of view has a file of its own."""

from __future__ import annotations

from typing import Annotated

import msgspec

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339 in UTC."""
Position = Annotated[
    str,
    msgspec.Meta(
        description="Opaque: its place in the log; of an answer, the position up to which it is true.",
        examples=["0-1042"],
    ),
]
Micros = Annotated[int, msgspec.Meta(description="Millionths of the currency unit.", examples=[2_500_000])]

VerdictCode = Annotated[str, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/VerdictCode"})]
"""The verdict on a use; one that you do not know means no."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Something as JSON."""
