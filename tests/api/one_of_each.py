"""What there is one of in the HTTP layer, where it is, and how a second one would be recognised.

| what | the one place |
| --- | --- |
| reader of bodies and queries | `asking/reading.py` |
| check of a caller | `asking/callers.py` |
| problem table | `answering/problems.py` |
| metric of answers | `answering/counting.py` |
| access line | `answering/lines.py` |
| redactor | `asking/secrets.py` |
| trace id | `asking/call.py` |
| way to declare a route | `operations.py` |
| struct for each thing that is shown | `answering/`, a file for each (`shown_twice.py`) |

And of some things there is none at all: `NONE_OF`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

API = Path(__file__).parents[2] / "services" / "api"

Sign = Callable[[ast.AST], bool]
"""Does this piece of source look like one?"""


class One(NamedTuple):
    """Something that there is one of."""

    place: str
    """The file that it is in, below `services/api`."""
    sign: Sign
    excused: Mapping[str, str]
    """Where else the sign may be seen (`file:function`, a pattern), and why."""
    second: str
    """Source of a second one."""


class Found(NamedTuple):
    """A place that shows a sign."""

    file: str
    function: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.function}"


def signs_in(source: str, file: str, sign: Sign) -> Iterator[Found]:
    """Where a source shows the sign; texts that only explain do not count."""
    yield from _walk(ast.parse(source), file, "", sign)


def _walk(node: ast.AST, file: str, inside: str, sign: Sign) -> Iterator[Found]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        name = inside
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{child.name}" if inside else child.name
        if sign(child):
            yield Found(file, name, getattr(child, "lineno", 0))
        yield from _walk(child, file, name, sign)


def seconds_of(one: One, source: str, file: str) -> list[Found]:
    """What looks like a second one, and is not excused."""
    return [
        found
        for found in signs_in(source, file, one.sign)
        if found.file != one.place and not any(fnmatchcase(found.where, excused) for excused in one.excused)
    ]


def sources() -> Iterator[tuple[str, str]]:
    """Each file of the HTTP layer, and what stands in it."""
    for path in sorted(API.rglob("*.py")):
        yield path.relative_to(API).as_posix(), path.read_text()


# -- signs


def _name_of(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name_of(node.value)}.{node.attr}"
    return ""


def _names(node: ast.AST, *names: str) -> bool:
    """Is it a reference to something whose name ends so? A function may be called by another name later."""
    called = f".{_name_of(node)}"
    return any(called.endswith(f".{name}") for name in names)


def _makes(node: ast.AST, *names: str) -> bool:
    """Is it a call of something whose name ends so?"""
    return isinstance(node, ast.Call) and _names(node.func, *names)


def _imports(node: ast.AST, *names: str) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(f"{node.module}.{one.name}" in names for one in node.names)
    return isinstance(node, ast.Import) and any(one.name in names for one in node.names)


def _text(node: ast.AST) -> str | None:
    """A constant text, or the bytes of one, in lower case."""
    if not isinstance(node, ast.Constant):
        return None
    if isinstance(node.value, bytes):
        return node.value.decode("latin-1").lower()
    return node.value.lower() if isinstance(node.value, str) else None


def _keys_of(node: ast.AST) -> set[str]:
    """Of a dict that is written out, or made by `dict(...)`; or the fields of a class."""
    if isinstance(node, ast.Dict):
        return {_text(one) or "" for one in node.keys if one is not None}
    if isinstance(node, ast.Call) and _name_of(node.func) == "dict":
        return {one.arg or "" for one in node.keywords}
    if isinstance(node, ast.ClassDef):
        return {
            one.target.id
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
    return set()


def reads_a_request(node: ast.AST) -> bool:
    """Decodes JSON or a query, or takes hold of the bytes of a body."""
    return (
        _names(node, "json.decode", "json.Decoder", "json.loads", "json.load", "JSONDecoder")
        or _names(node, "msgspec.convert", "parse_qs", "parse_qsl")
        or _names(node, "call.data", "request.json", "request.body", "request.stream", "request.form")
        or _imports(node, "msgspec.json", "json", "json.loads", "msgspec.json.decode", "msgspec.convert")
    )


def looks_at_a_caller(node: ast.AST) -> bool:
    """Reads who asks, or compares what a root key is known by."""
    text = _text(node)
    return (
        text == "authorization"
        or (text is not None and text.startswith("bearer "))
        or _names(node, "call.authorization", "request.authorization", "permissions_of", "facts.find")
        or _makes(node, "sha256", "judge_key", "state_of", "compare_digest")
    )


def tells_a_problem(node: ast.AST) -> bool:
    """Writes problem details, or a table from codes to statuses."""
    text = _text(node)
    if text is not None and (
        "application/problem+json" in text
        or text.startswith("urn:keyledger:problem")
        or text == "about:blank"
    ):
        return True
    if _makes(node, "Meaning", "Problem", "HTTPException"):
        return True
    keys = _keys_of(node)
    if {"title", "status"} <= keys or {"type", "title", "detail"} <= keys:
        return True
    if not isinstance(node, ast.Dict):
        return False
    pairs = zip(node.keys, node.values, strict=True)
    statuses = [
        key
        for key, value in pairs
        if key is not None and _text(key) is not None and isinstance(value, ast.Constant)
        and isinstance(value.value, int) and 400 <= value.value < 600
    ]  # fmt: skip
    return len(statuses) > 1


def counts_answers(node: ast.AST) -> bool:
    """A metric that tells answers apart, or says how long they took."""
    if _names(node, "HistogramMetricFamily", "Histogram", "SummaryMetricFamily", "Summary"):
        return True
    if not (isinstance(node, ast.Call) and _name_of(node.func).endswith(("Family", "Counter", "Gauge"))):
        return False
    labels = {_text(one) for part in (*node.args, *node.keywords) for one in ast.walk(part)}
    return bool(labels & {"route", "path", "method", "status", "code"})


def writes_an_access_line(node: ast.AST) -> bool:
    """A line of the log about a request and its answer."""
    if not isinstance(node, ast.Call):
        return False
    logs = _name_of(node.func).rsplit(".", 1)[-1] in {
        "log", "debug", "info", "warning", "error", "exception", "critical", "print", "write",
    }  # fmt: skip
    named = {one.arg for one in node.keywords}
    return logs and (
        any(_text(one) in {"request", "access", "answer"} for one in node.args)
        or len(named & {"path", "method", "status", "ms", "caller"}) > 1
    )


def finds_secrets(node: ast.AST) -> bool:
    """Recognises secrets in a text, or blots them out."""
    text = _text(node)
    return (
        (text is not None and ("[redacted]" in text or re.search(r"\{2[0-9],?\}", text) is not None))
        or _names(node, "may_hold_secret", "without_long_runs", "known_shapes", "shape.anywhere")
        or _imports(node, "keyledger_language.redact", "keyledger_language.SecretShape")
        or _imports(node, "keyledger_edge.redact", "keyledger_edge.SecretShape")
        or (isinstance(node, ast.ImportFrom) and node.module == "services.redaction")
    )


def makes_a_trace_id(node: ast.AST) -> bool:
    """Reads or makes the id that a request is known by."""
    text = _text(node)
    if text is not None and (text.startswith(("x-request-id", "req_")) or text == "traceparent"):
        return True
    return _names(node, "uuid4", "uuid7", "uuid1", "token_hex", "os.urandom", "new_request_id")


def declares_a_route(node: ast.AST) -> bool:
    """A route that is not declared beside its handler."""
    return _makes(
        node, "Operation", "HTTPRouteHandler", "Litestar", "Router", "Controller", "Starlette", "Mount"
    ) or (
        isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] in {"litestar", "starlette", "aiohttp", "fastapi"}
        and any(one.name in {"get", "post", "put", "patch", "delete", "route", "asgi"} for one in node.names)
    )


_HANDED_OUT: Final = {"facts", "fences", "limiter", "time"}
"""What the ledger hands out to be asked itself; of the committed state a call has `books`."""
_OF_THE_LEDGER_ALONE: Final = {"bus", "ports", "state"}


def _is_a_ledger(node: ast.AST) -> bool:
    return _name_of(node).rpartition(".")[2] in {"ledger", "_ledger"}


def reaches_through_the_ledger(node: ast.AST) -> bool:
    """Takes something out of a part of the ledger's, in place of asking the ledger."""
    if not isinstance(node, ast.Attribute):
        return False
    if _is_a_ledger(node.value):
        return node.attr in _OF_THE_LEDGER_ALONE or node.attr.startswith("_")
    part = node.value
    return isinstance(part, ast.Attribute) and _is_a_ledger(part.value) and part.attr not in _HANDED_OUT


def changes_the_ledger(node: ast.AST) -> bool:
    """Sets something of a ledger that others use."""
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_a_ledger(node.value)


class NoneOf(NamedTuple):
    """Something that nobody does."""

    sign: Sign
    planted: str
    """Source of somebody who does."""


NONE_OF: Mapping[str, NoneOf] = {
    "reaches through the ledger": NoneOf(
        reaches_through_the_ledger,
        "def head(call):\n    return call.ledger.books.keys.find('key_1')\n",
    ),
    "takes the ledger's own state": NoneOf(
        reaches_through_the_ledger, "def state_of(ledger):\n    state = ledger.state\n"
    ),
    "goes to the bus beside the ledger": NoneOf(
        reaches_through_the_ledger, "def ask(self, command):\n    self._ledger.bus.submit(command)\n"
    ),
    "sets an attribute of the ledger": NoneOf(
        changes_the_ledger, "def listen(call):\n    call.ledger.on_commit = print\n"
    ),
}

EACH: Mapping[str, One] = {
    "reader": One(
        "asking/reading.py",
        reads_a_request,
        {
            "door.py:Door.begin": "hands the bytes to the operation's reader",
            "serving/*": "takes the bytes in and passes them on",
            "asking/call.py:Call.as_it_came_in": "takes them over from the same call",
            "writing.py:_digest": "compares what was read already with what an Idempotency-Key stood for",
            "writing.py:_replayed": "an answer of our own that was kept",
            "resources/key_imports.py:import_keys": "one key or many: chooses which reader gets the bytes",
            "resources/key_imports.py:_import": "an answer of our own that was kept",
            "resources/forward_auth.py:ForwardAuth._ask": "a client's own query, which a proxy shows",
            "resources/self_service.py:_shown": "a credential in a query, where a keyspace has it there",
            "description/pages.py:": "writes examples",
            "description/examples.py:examples": "reads the examples that are shown",
        },
        "def charge(call):\n    body = msgspec.json.decode(call.data)\n",
    ),
    "caller check": One(
        "asking/callers.py",
        looks_at_a_caller,
        {
            "asking/call.py:*": "keeps the header until the caller is looked for",
            "door.py:Door.begin": "hands the header to the check",
            "answering/problems.py:challenge": "the scheme that a 401 names",
            "resources/checking.py:Checker.*": "an ordinary key's secret, which is what the request is about",
            "resources/edge_membership.py:fill_edge": "an ordinary key's facts, for an edge",
            "resources/self_service.py:get_self": "an ordinary key's state, for its holder",
            "serving/seals.py:*": "another process of this ledger, by the seal of what it passes on",
        },
        "def who(scope):\n    return dict(scope['headers']).get(b'authorization')\n",
    ),
    "problem table": One(
        "answering/problems.py",
        tells_a_problem,
        {
            "description/openapi.py:*": "describes them",
        },
        "def refused():\n    return {'type': 'about:blank', 'title': 'No', 'status': 403}\n",
    ),
    "metric of answers": One(
        "answering/counting.py",
        counts_answers,
        {},
        "CHARGES = Counter('keyledger_charge_answers', 'Charges answered.', ['code'])\n",
    ),
    "access line": One(
        "answering/lines.py",
        writes_an_access_line,
        {},
        "def done(call, status):\n    log.info('charge.answered', path=call.path, status=status)\n",
    ),
    "redactor": One(
        "asking/secrets.py",
        finds_secrets,
        {},
        "def shown(text):\n    return re.sub(r'[0-9A-Za-z]{22,}', '[redacted]', text)\n",
    ),
    "trace id": One(
        "asking/call.py",
        makes_a_trace_id,
        {
            "answering/answers.py:*": "writes it as a header",
            "serving/bounded.py:*": "answers what is no HTTP, for which there is no call",
            "serving/not_yet.py:*": "answers while nothing is ready, when there is no call",
            "serving/forwarding.py:*": "passes it on",
            "serving/seals.py:": "passes it on under another name",
            "serving/handing_back.py:*": "passes it back",
            "serving/seals.py:Seals.__init__": "what a process is called in the seals that it makes",
            "description/*": "describes it",
        },
        "def traced(headers):\n    return headers.get('x-request-id') or str(uuid.uuid4())\n",
    ),
    "way to declare a route": One(
        "operations.py",
        declares_a_route,
        {
            "serving/app.py:_router": "the router, made of what is declared",
            "serving/app.py:_route": "the same",
            "serving/app.py:_options": "refuses what the router would answer by itself",
        },
        "@operations.get('/v1/hidden')\nasync def hidden() -> None: ...\nROUTE = Operation(method='GET')\n",
    ),
}
