"""Start the command line, from a checkout and from an installed wheel alike."""

import sys
from pathlib import Path

# The wheel keeps the project's folders together, so that site-packages gets no package called `domain`.
INSTALLED = Path(__file__).parent / "keyledger_server"


def main() -> None:
    """Put the project's folders on the path, then run the command line."""
    if INSTALLED.is_dir():
        sys.path.insert(0, str(INSTALLED))
    from services.cli.main import main as command_line  # noqa: PLC0415 - found only on the path set above

    command_line()
