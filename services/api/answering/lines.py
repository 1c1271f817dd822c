"""The access log: a line for each request, except for granted quick requests unless that is switched on."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any, Final

import structlog

from services.api.asking.call import Call
from services.api.asking.secrets import Redactor
from services.api.asking.traces import shown_path

log: Final = structlog.get_logger()

_REFUSED: Final = 400
_FAILED: Final = 500
MOST_A_SECOND: Final = 200
"""Lines about refusals; of further ones only the number is logged: a flood must not fill the disk."""


class AccessLog:
    """Writes the lines."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._second = 0.0
        self._written = self._left_out = 0

    def write(self, call: Call[Any, Any], status: int, code: str, seconds: float) -> None:
        """Write one line for one answer, if there is room."""
        if _REFUSED <= status < _FAILED and not self._has_room():
            return
        log.log(
            logging.WARNING if status >= _FAILED else logging.INFO,
            "request",
            method=call.method,
            path=shown_path(call.scope["path"], self._redactor),
            status=status,
            code=code,
            caller=call.caller_id,
            request_id=call.request_id,
            ms=round(seconds * 1_000, 3),
        )

    def _has_room(self) -> bool:
        now = monotonic()
        if now - self._second >= 1.0:
            if self._left_out:
                log.warning("requests.refused_without_a_line", number=self._left_out)
            self._second, self._written, self._left_out = now, 0, 0
        if self._written < MOST_A_SECOND:
            self._written += 1
            return True
        self._left_out += 1
        return False
