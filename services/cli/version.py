"""The version of this program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version."""
    try:
        return version("keyledger")
    except PackageNotFoundError:
        return "0+unknown"
