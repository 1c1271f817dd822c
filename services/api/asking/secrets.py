"""Nothing that is kept or logged may hold a secret: texts that come from outside are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from domain.errors import InvalidError
from domain.state import State
from keyledger_edge import NO_USE, Use
from services.api.answering.answers import Answer, error_answer
from services.api.asking.traces import Redactor


class SecretWatch:
    """Finds secrets of any keyspace in text; `sure` as a Redactor has it."""

    def __init__(self, state: State, sure: Callable[[], bool]) -> None:
        self.redactor = Redactor(state, sure)
        self.holds = self.redactor.holds_secret
        self.may_be_shown = self.redactor.may_be_shown

    def refuse(self, text: str | None, field: str) -> None:
        """Refuse a text that would be kept with a secret in it."""
        if text is not None and self.holds(text):
            raise InvalidError(field, "holds what looks like a secret")

    def error_answer(self, error: Exception, request_id: str) -> Answer:
        """An error told without a secret: what was sent in the wrong field is often named in it."""
        answer = error_answer(error, request_id)
        text = answer.body.decode()
        told = self.redactor.redact(text)
        if told == text:
            return answer
        body = told.encode()
        headers = [(name, value) for name, value in answer.headers if name != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        return msgspec.structs.replace(answer, headers=headers, body=body)

    def refuse_in(
        self, use: Use, request_id: str | None, metadata: dict[str, Any] | None, field: str = "request_id"
    ) -> None:
        """Refuse a use whose record would hold a secret."""
        if request_id is not None and self.holds(request_id):
            raise InvalidError(field, "holds what looks like a secret")
        if use is NO_USE and not metadata:
            return
        if metadata and self.holds(msgspec.json.encode(metadata).decode()):
            raise InvalidError("metadata", "holds what looks like a secret")
        tenant = use.tenant
        if use.model is not None and self.holds(use.model):
            raise InvalidError("model", "holds what looks like a secret")
        if use.provider is not None and self.holds(use.provider):
            raise InvalidError("provider", "holds what looks like a secret")
        if use.project_id is not None and self.holds(use.project_id):
            raise InvalidError("project_id", "holds what looks like a secret")
        if tenant is not None and self.holds(f"{tenant.org_id} {tenant.user_id}"):
            raise InvalidError("tenant", "holds what looks like a secret")
