"""Whether a stream may have colours."""

from __future__ import annotations

import os
from typing import TextIO


def colour_of(stream: TextIO) -> bool:
    """Whether it is a terminal with colours, and NO_COLOR is not set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
