"""The root key that the command line uses: from the environment, or a file that only its owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from services.cli.faults import NOT_ALLOWED, CommandError
from services.settings import Settings

FILE_NAME: Final = "root-key"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def find_root_key(settings: Settings, file: Path | None = None) -> str:
    """The key of `--key-file`, else of KEYLEDGER_API_KEY, else of the data folder's `root-key`."""
    if file is not None:
        return read_private(file)
    if settings.api_key is not None:
        return settings.api_key
    usual = settings.data_dir / FILE_NAME
    if usual.is_file():
        return read_private(usual)
    raise CommandError(
        f"No root key: set KEYLEDGER_API_KEY, or give --key-file ({usual} does not exist).",
        code="unauthenticated",
        exit_code=NOT_ALLOWED,
    )


def read_private(file: Path) -> str:
    """The text of a file that nobody else may read; a file with wider permissions is refused."""
    try:
        with file.open(encoding="utf-8") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if mode & _OTHERS:
                raise CommandError(
                    f"{file} is open to others (mode {mode:04o}): chmod 600 it, and rotate the key.",
                    code="key_file_open",
                    exit_code=NOT_ALLOWED,
                )
            text = opened.read(4_096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}.", exit_code=NOT_ALLOWED) from None
    if not text:
        raise CommandError(f"{file} is empty.", exit_code=NOT_ALLOWED)
    return text


def write_private(file: Path, text: str) -> None:
    """Write a secret to a file that nobody else may read; an older file is replaced as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    fresh.replace(file)
