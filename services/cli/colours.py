"""May colours go there?"""

from __future__ import annotations

import os
from typing import TextIO


def colour_of(stream: TextIO) -> bool:
    """Not without a terminal, nor where NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
