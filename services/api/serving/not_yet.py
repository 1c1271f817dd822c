"""What a ledger process answers while it starts and waits for its dependencies."""

from __future__ import annotations

from services.api.answering.answers import Answer, encode, json_answer, problem_answer
from services.api.answering.problems import headers_of, problem_of
from services.api.asking.call import Receive, Scope, Send, new_request_id
from services.api.resources.health import AliveView, ReadyView, WaitingView
from services.ledger.errors import UnavailableError

_CLOSE = (b"connection", b"close")


class NotYet:
    """An ASGI application: alive, not ready, and 503 for everything else."""

    def __init__(self, dependency: str, detail: str) -> None:
        self._dependency = dependency
        self._detail = detail

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """One connection event, as ASGI has it."""
        if scope["type"] != "http":
            return
        request_id = new_request_id()
        answer = self._answer(scope["path"], request_id)
        answer.request_id = request_id.encode()
        # The connection is closed, so that the next request reaches the ledger itself, once it has started.
        headers = [*answer.headers, _CLOSE]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str, request_id: str) -> Answer:
        if path == "/healthz":
            return json_answer(200, encode(AliveView(status="alive")), None)
        if path == "/readyz":
            waits_for = [WaitingView(dependency=self._dependency, detail=self._detail)]
            view = ReadyView(
                ready=False,
                owner=False,
                position="0-0",
                projected="0-0",
                waits_for=waits_for,
                does_without=[],
            )
            return json_answer(503, encode(view), None)
        error = UnavailableError(self._dependency, self._detail)
        found = problem_of(error, request_id)
        assert found is not None, "each of the ledger's own errors is a problem"
        return problem_answer(encode(found), found.status, found.code, headers_of(error))
