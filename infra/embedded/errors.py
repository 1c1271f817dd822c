"""The reasons why an embedded server cannot run, each with a one-sentence message.

EmbeddedError
├── DataFolderBusyError   another keyledger uses the folder
├── DataFolderError       the folder cannot be used
└── ServerFailedError     a server did not start, or ended
"""

from pathlib import Path


class EmbeddedError(Exception):
    """An embedded server cannot run; the message is a sentence for the operator."""


class DataFolderBusyError(EmbeddedError):
    """Another keyledger uses this data folder."""

    def __init__(self, path: Path, pid: int | None) -> None:
        holder = f"pid {pid}" if pid is not None else "pid unknown"
        super().__init__(
            f"Another keyledger is using {path}, {holder}: stop it, or choose another KEYLEDGER_DATA_DIR."
        )
        self.pid = pid


class DataFolderError(EmbeddedError):
    """The data folder cannot be created, read or written."""


class ServerFailedError(EmbeddedError):
    """A server did not start, or ended; the message has the last line of its log."""
