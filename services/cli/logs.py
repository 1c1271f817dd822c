"""The log of a process: one line per event on standard error, never a secret."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final

import structlog

from services.redaction import for_the_log, without_long_runs
from services.settings import Settings

_NOISY: Final = {"uvicorn.error": logging.WARNING, "asyncio": logging.WARNING, "nats": logging.CRITICAL}


def configure_logs(settings: Settings, least: str | None = None) -> None:
    """Log from `log_level` on, as text on a terminal or JSON elsewhere, for structlog and logging alike."""
    level = max(getattr(logging, name.upper()) for name in (settings.log_level, least or "debug"))
    before: list[Any] = [  # structlog has no type for everything that is allowed here
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*before, *_rendering(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quieter in _NOISY.items():
        logging.getLogger(name).setLevel(max(level, quieter))
    sys.excepthook = _tell_of_a_crash
    threading.excepthook = lambda crash: _tell_of_a_crash(
        crash.exc_type, crash.exc_value, crash.exc_traceback
    )


def _rendering(settings: Settings) -> list[Any]:
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer()
    )
    return [structlog.processors.format_exc_info, renderer, _without_secrets]


def _without_secrets(_: Any, __: str, line: str) -> str:
    """Remove secrets from a whole line, at the very end, with values of any kind and exceptions in it."""
    return for_the_log(line)


def _tell_of_a_crash(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    # The shapes of secrets that this process had learned are unregistered by the time it crashes.
    text = for_the_log("".join(traceback.format_exception(kind, error, trace)))
    sys.stderr.write(without_long_runs(text))
