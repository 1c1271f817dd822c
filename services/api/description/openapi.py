"""The API description: OpenAPI 3.1, made from the same declarations that the routes are made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from keyledger_language import STATUS_OF_CODE
from services.api.answering.problems import PROBLEM_JSON, TABLE, TYPE_PREFIX, Problem
from services.api.asking.fields import NoBody
from services.api.description import headers
from services.api.description.examples import Example, examples
from services.api.description.places import schema_of_place
from services.api.description.schemas import REF, Schemas
from services.api.operations import Operation

_JSON: Final = "application/json"
_EVERYWHERE: Final = (
    "invalid_request",
    "internal_error",
    # What the HTTP server refuses, whatever the route.
    "malformed_request",
    "request_timeout",
    "url_too_long",
    "headers_too_large",
    "too_many_connections",
)
_WITH_CALLER: Final = (
    "ambiguous_credentials", "unauthenticated", "permission_denied", "organization_suspended", "ip_denied",
    "dependency_unavailable", "not_owner",
)  # fmt: skip
_WITH_BODY: Final = ("malformed_body", "body_too_large", "overloaded", "outcome_unknown")
_TAGS: Final = {
    "Keyspaces": "The keys of one gateway: shape of the secret, where requests carry it, denial statuses.",
    "Organizations": "The customers: each owns projects, keys, one wallet.",
    "Projects": "What a key may be scoped to inside an organization.",
    "Wallets": "Prepaid balances. Money is an integer count of micros.",
    "Plans": "Models and a price multiplier, given to keys by the platform.",
    "Keys": "The lasting identities. A secret is shown once and never stored.",
    "Usage": "Requests and money by hour, day and month.",
    "Requests": "The outcomes of requests.",
    "Audit": "Who did what, when, from where, with before and after.",
    "Events": "The change feed.",
    "Edges": "Verifiers near the traffic, and the fences that cover them.",
    "Leaks": "Secrets that were found in the open.",
    "Verify": "Checks secrets against uses.",
    "Charges": "Metered uses that cost money, final.",
    "Reservations": "Money held for a use whose price is not known yet.",
    "Self": "What the holder of an ordinary key can see and do.",
    "Operating": "For operators; open to everyone who can reach it.",
}
_DESCRIPTION: Final = """\
Keyledger issues, verifies, meters and revokes API keys on one append-only log.

Management requests carry a root key: `Authorization: Bearer kl_root_...`. Money is an integer count of \
micros, times are RFC 3339 in UTC. Writes take an `Idempotency-Key` (kept 24 hours per root key) and, if \
the thing has a version, `If-Match`. Every answer carries `X-Request-Id`, and `X-Keyledger-Position` if \
state was read or written; a `GET` with that header waits until the position is visible. Errors are \
RFC 9457 problem details with a stable `code`.

Requests that are refused before a route reads them get the same answers everywhere: 400 \
`malformed_request`, 405 `method_not_allowed` \
(`Allow` lists the methods), 408 `request_timeout`, 414 `url_too_long`, 431 `headers_too_large`, 503 \
`too_many_connections`.
"""
_SECURITY: Final = {
    "rootKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "kl_root_...",
        "description": "A root key with the permissions that the operation names.",
    },
    "ownSecret": {
        "type": "http",
        "scheme": "bearer",
        "description": "An ordinary key's own secret; also anywhere else its keyspace takes secrets.",
    },
    "proxyKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Keyledger-Proxy-Key",
        "description": "The proxy's own root key, with `verify`, in addition to the client's secret.",
    },
}
_PLACES: Final = {
    "keyspace_id": "The keyspace's id.",
    "organization_id": "The organization's id.",
    "project_id": "The project's id.",
    "plan_id": "The plan's id.",
    "key_id": "The key's id.",
    "charge_id": "The charge's id.",
    "reservation_id": "The reservation's id.",
    "request_id": "Your own id of the use; it may contain slashes.",
    "position": "The position of the change.",
    "path": "The client's own path, which its proxy appended.",
}
"""Descriptions of path parameters."""
_FORBIDDEN: Final = 403


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole description."""
    schemas = Schemas(_asked(operations), _answered(operations))
    shown = examples()
    parameters = {kind: schemas.taken(kind) for kind in dict.fromkeys(one.query for one in operations)}
    paths: dict[str, Any] = {}
    for one in operations:
        told = _Told(one, schemas, shown.get(one.name))
        paths.setdefault(one.path, {})[one.method.lower()] = told.operation(parameters[one.query])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keyledger",
            "version": version,
            "summary": "A ledger for API keys",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": headers.headers(),
            "securitySchemes": _SECURITY,
        },
    }


def _asked(operations: Iterable[Operation]) -> list[Any]:
    kinds = (kind for one in operations for kind in (one.query, *_bodies(one)))
    return list(dict.fromkeys(kinds))


def _answered(operations: Iterable[Operation]) -> list[Any]:
    found: dict[str, Any] = {repr(Problem): Problem}
    for one in operations:
        for kind in (one.answer, *dict(one.other_answers).values()):
            if kind is not None:
                found.setdefault(repr(kind), kind)
    return list(found.values())


def _bodies(one: Operation) -> tuple[type[msgspec.Struct], ...]:
    return () if one.body is NoBody else one.bodies or (one.body,)


class _Told:
    """The description of one operation."""

    def __init__(self, one: Operation, schemas: Schemas, example: Example | None) -> None:
        self._one = one
        self._schemas = schemas
        self._example = example

    def operation(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The whole description."""
        one = self._one
        told: dict[str, Any] = {
            "operationId": one.name,
            "tags": [one.tag],
            "summary": one.summary,
            "description": _about(one),
            "parameters": [*_path_parameters(one), *_query_parameters(parameters), *headers.asked_of(one)],
            "responses": self._responses(),
            "security": _security(one),
        }
        if one.permissions:
            told["x-permissions"] = list(one.permissions)
        if _bodies(one):
            told["requestBody"] = self._request_body()
        return told

    def _request_body(self) -> dict[str, Any]:
        one = self._one
        kinds = _bodies(one)
        found = [self._schemas.asked(kind) for kind in kinds]
        content: dict[str, Any] = {"schema": found[0] if len(found) == 1 else {"oneOf": found}}
        if self._example is not None and self._example.body is not None:
            content["example"] = self._example.body
        elif one.example is not None:
            content["example"] = one.example
        required = all(any(field.required for field in msgspec.structs.fields(kind)) for kind in kinds)
        return {"required": required, "content": {_JSON: content}}

    def _responses(self) -> dict[str, Any]:
        one = self._one
        responses = {str(one.status): self._answer(one.status, one.answer)}
        for status, kind in one.other_answers:
            responses[str(status)] = self._answer(status, kind)
        if one.fenced:
            responses["202"] = self._answer(202, one.answer)
        problems = self._problem_schema()
        for status, codes in sorted(_by_status(one).items()):
            told = self._problems(status, codes, problems)
            had = responses.setdefault(str(status), told)
            if had is not told:  # `/readyz` answers 503 with its view, too
                had["description"] += f" Or {told['description']}"
                had["content"] |= told["content"]
        return responses

    def _answer(self, status: int, kind: Any) -> dict[str, Any]:
        one = self._one
        told: dict[str, Any] = {
            "description": _MEANINGS.get(status, "Success."),
            "headers": headers.told_by(one, status, kind),
        }
        if kind is not None:
            told["content"] = {
                media_type: self._content(media_type, status, kind) for media_type in one.media_types
            }
        return told

    def _content(self, media_type: str, status: int, kind: Any) -> dict[str, Any]:
        if media_type != _JSON:
            return {
                "schema": {"type": "string", "description": _TEXTS[media_type]},
                "example": _SAMPLES[media_type],
            }
        content = {"schema": self._schemas.answered(kind)}
        if self._example is not None and self._example.status == status:
            content["example"] = self._example.answer
        return content

    def _problem_schema(self) -> dict[str, Any]:
        """A problem with the codes that this operation may answer."""
        name = f"{self._one.name[0].upper()}{self._one.name[1:]}Problem"
        codes = dict.fromkeys(code for codes in _by_status(self._one).values() for code in codes)
        code = {
            "type": "string",
            "enum": list(codes),
            "description": "The reason; `ProblemCode` lists what each code means.",
        }
        self._schemas.components[name] = {
            "description": f"Why `{self._one.name}` was refused.",
            "allOf": [
                {"$ref": REF + "Problem"},
                {"type": "object", "properties": {"code": code}, "required": ["code"]},
            ],
        }
        return {"$ref": REF + name}

    def _problems(self, status: int, codes: list[str], schema: dict[str, Any]) -> dict[str, Any]:
        code = codes[0]
        title = TABLE[code].title
        example = {
            "type": TYPE_PREFIX + code,
            "title": title,
            "status": status,
            "detail": f"{title}.",
            "code": code,
            "request_id": "req_1f0c2a7b9d3e1",
        }
        return {
            "description": "; ".join(f"`{code}`: {TABLE[code].title}" for code in codes),
            "headers": headers.told_by(self._one, status, None),
            "content": {PROBLEM_JSON: {"schema": schema, "example": example}},
        }


_MEANINGS: Final = {
    201: "Created.",
    202: "Committed; the fence does not hold yet.",
    503: "It cannot serve; the answer lists what it waits for.",
}
_TEXTS: Final = {
    "application/x-ndjson": "A line of JSON for each entry.",
    "text/csv": "A row for each entry, under a header.",
    "text/event-stream": "Server-Sent Events: each has its position as `id`, and its JSON as `data`.",
    "text/html": "A page for people.",
    "text/plain": "Metrics in Prometheus's text format.",
}
"""Answers that are not JSON."""
_SAMPLES: Final = {
    "application/x-ndjson": '{"position":"0-12","action":"KeyRevoked"}\n',
    "text/csv": "position,at,actor,action\r\n0-12,2026-01-15T09:30:00.000000Z,system,KeyRevoked\r\n",
    "text/event-stream": 'id: 0-12\nevent: keyledger.KeyRevoked\ndata: {"specversion":"1.0"}\n\n',
    "text/html": "<!doctype html>",
    "text/plain": "# HELP keyledger_owner Whether this process owns the partition.\nkeyledger_owner 1.0\n",
}


def _about(one: Operation) -> str:
    needs = f"Needs {' or '.join(f'`{each}`' for each in one.permissions)}." if one.permissions else ""
    mapped = _MAPPED if _may_refuse_a_use(one) else ""
    return " ".join(part for part in (one.description or sentence(one.summary), mapped, needs) if part)


def sentence(summary: str) -> str:
    """A summary with its full stop."""
    return summary if summary.endswith("?") else f"{summary}."


_MAPPED: Final = "A keyspace's `denial_status` may give a refused use another status."


def _security(one: Operation) -> list[dict[str, list[str]]]:
    if one.permissions:
        return [{"rootKey": []}]
    if one.proxied:
        return [{"proxyKey": []}]
    return [{"ownSecret": []}] if one.other_parameters is not None else []


def _path_parameters(one: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PLACES[name],
            "schema": schema_of_place(name),
        }
        for name in re.findall(r"\{(\w+)\}", one.path)
    ]


def _query_parameters(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, about in schema.get("properties", {}).items():
        plain = {field: value for field, value in about.items() if field != "description"}
        yield {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": about.get("description", ""),
            "schema": _without_null(plain),
        }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is present or absent, but never null."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) == 1:
        return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}
    if isinstance(schema.get("enum"), list):
        return {**schema, "enum": [one for one in schema["enum"] if one is not None]}
    return schema


# -- the codes that it may be refused with


def _codes(one: Operation) -> tuple[str, ...]:
    codes: tuple[str, ...] = _EVERYWHERE
    if not (one.proxied or (one.idempotent and one.conditional)):
        codes += ("unsupported_header",)
    if one.permissions:
        codes += _WITH_CALLER
    if one.has_body:
        codes += _WITH_BODY
    elif one.permissions:
        codes += ("position_not_reached", "position_unknown")
    return tuple(dict.fromkeys((*codes, *one.codes)))


def _by_status(one: Operation) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for code in _codes(one):
        for status in _statuses(one, code):
            found.setdefault(status, []).append(code)
    return found


def _statuses(one: Operation, code: str) -> tuple[int, ...]:
    """The statuses of a code; a refused use never gets 401, which is for the caller's own key."""
    as_verdict = STATUS_OF_CODE.get(code)
    if as_verdict is None:
        return (TABLE[code].status,)
    if not one.permissions:
        return (as_verdict,)
    if code == "not_found":
        return (TABLE[code].status, _FORBIDDEN) if _may_refuse_a_use(one) else (TABLE[code].status,)
    return (_FORBIDDEN if as_verdict == TABLE["unauthenticated"].status else as_verdict,)


def _may_refuse_a_use(one: Operation) -> bool:
    return "billing_shortfall" in one.codes
