"""What a process writes about itself: one line per event on standard error, never a secret."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from domain.keyspaces import PRESETS, ROOT_PREFIX
from keyledger_edge import SecretShape, redact
from services.settings import Settings

_NOISY: Final = {"uvicorn.error": logging.WARNING, "asyncio": logging.WARNING, "nats": logging.CRITICAL}


def configure_logs(settings: Settings, least: str | None = None) -> None:
    """Write from `log_level` on, as text on a terminal or JSON elsewhere, for structlog and logging alike."""
    level = max(getattr(logging, name.upper()) for name in (settings.log_level, least or "debug"))
    before: list[Any] = [  # structlog has no name for all that may stand here
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


def _rendering(settings: Settings) -> list[Any]:
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer()
    )
    return [structlog.processors.format_exc_info, _without_secrets, renderer]


def _shapes() -> tuple[SecretShape, ...]:
    presets = [
        SecretShape(prefix=preset["prefix"], format=preset["secret_format"]) for preset in PRESETS.values()
    ]
    return (*presets, SecretShape(prefix=ROOT_PREFIX, format=PRESETS["default"]["secret_format"]))


_SHAPES: Final = _shapes()


def _without_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last net: nothing that looks like a secret of a shipped shape leaves in a line."""
    for name, value in event.items():
        if isinstance(value, str) and any(shape.prefix in value for shape in _SHAPES):
            event[name] = redact(value, _SHAPES)
    return event
