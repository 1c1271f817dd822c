"""The API description: OpenAPI 3.1, made from the same declarations that the routes are made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from services.api.answering.problems import PROBLEM_JSON, TABLE, TYPE_PREFIX, Problem
from services.api.asking.fields import NoBody
from services.api.description.field_notes import annotate
from services.api.operations import Operation

_REF: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_CREATED: Final = 201
_EVERYWHERE: Final = ("invalid_request", "internal_error")
_WITH_CALLER: Final = (
    "ambiguous_credentials",
    "unauthenticated",
    "permission_denied",
    "ip_denied",
    "organization_suspended",
    "dependency_unavailable",
    "not_owner",
)
_WITH_BODY: Final = ("malformed_body", "body_too_large", "overloaded", "outcome_unknown")
_TAGS: Final = {
    "Keyspaces": "The keys of one gateway: shape of the secret, where it may stand, what denials look like.",
    "Organizations": "The customers: each owns projects, keys, one wallet.",
    "Projects": "What a key may be scoped to inside an organization.",
    "Wallets": "Prepaid balances. Money is an integer count of micros.",
    "Plans": "Models and a price multiplier, given to keys by the platform.",
    "Keys": "The lasting identities. A secret is shown once and never stored.",
    "Usage": "Requests and money by hour, day and month.",
    "Requests": "What became of a request.",
    "Audit": "Who did what, when, from where, with before and after.",
    "Events": "The change feed.",
    "Edges": "Verifiers near the traffic, and the fences that hold them.",
    "Leaks": "Secrets that were found in the open.",
    "Verify": "Is this secret good for this use?",
    "Charges": "Metered uses that cost money, final.",
    "Reservations": "Money held for a use whose price is not known yet.",
    "Self": "What an ordinary key may ask about itself.",
    "Operating": "For those who run it; open to everybody who can reach it.",
}
_DESCRIPTION: Final = """\
Keyledger issues, verifies, meters and revokes API keys on one append-only log.

Management callers show a root key: `Authorization: Bearer kl_root_...`. Money is an integer count of \
micros, times are RFC 3339 in UTC. Writes take an `Idempotency-Key` (kept 24 hours per root key) and, where \
a thing has a version, `If-Match`. Every answer carries `X-Request-Id`, and `X-Keyledger-Position` where \
state was read or written; a `GET` with that header waits until the position is visible. Errors are \
RFC 9457 problem details with a stable `code`.
"""


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole description."""
    types = list(_types(operations))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    annotate(components, types)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schema_of, components)
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
            "schemas": components,
            "securitySchemes": {
                "rootKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "kl_root_...",
                    "description": "A root key with the permissions that the operation names.",
                }
            },
        },
    }


def _key(kind: Any) -> str:
    return repr(kind)


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    seen: dict[str, Any] = {_key(Problem): Problem}
    for one in operations:
        for kind in (one.query, *(one.bodies or (one.body,)), one.answer, *dict(one.other_answers).values()):
            if kind is not None:
                seen.setdefault(_key(kind), kind)
    return seen.values()


def _operation(one: Operation, schema_of: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": one.summary,
        "description": _about(one),
        "parameters": [
            *_path_parameters(one),
            *_query_parameters(one, schema_of, components),
            *_headers(one),
        ],
        "responses": _responses(one, schema_of),
        "security": [{"rootKey": []}] if one.permissions else [],
    }
    if one.permissions:
        described["x-permissions"] = list(one.permissions)
    if one.method != "GET" and one.body is not NoBody:
        described["requestBody"] = _request_body(one, schema_of)
    return described


def _about(one: Operation) -> str:
    needs = f"Needs {' or '.join(f'`{each}`' for each in one.permissions)}." if one.permissions else ""
    return " ".join(part for part in (one.description, needs) if part)


def _path_parameters(one: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", one.path)
    ]


def _query_parameters(
    one: Operation, schema_of: dict[str, Any], components: dict[str, Any]
) -> list[dict[str, Any]]:
    reference = schema_of[_key(one.query)]["$ref"].rpartition("/")[2]
    schema = components[reference]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": _note_of(about),
            "schema": about,
        }
        for name, about in schema.get("properties", {}).items()
    ]


def _note_of(schema: dict[str, Any]) -> str:
    """What is written about a field, also where it may be null."""
    notes = (each.get("description", "") for each in (schema, *schema.get("anyOf", ())))
    return next(filter(None, notes), "")


def _headers(one: Operation) -> list[dict[str, Any]]:
    text = {"type": "string"}
    headers = [("X-Request-Id", "A trace id of your own; it comes back, and is in logs and audit.")]
    if one.method == "GET" and one.permissions:
        headers.append(("X-Keyledger-Position", "Wait (up to 2 s) until this position is visible."))
    if one.idempotent:
        headers.append(("Idempotency-Key", "The same key and body again get the first answer, for 24 hours."))
    if one.conditional:
        headers.append(("If-Match", 'The version that you decided on, such as `"3"`.'))
    return [
        {"name": name, "in": "header", "required": False, "description": about, "schema": text}
        for name, about in headers
    ]


def _request_body(one: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    kinds = one.bodies or (one.body,)
    schemas = [schema_of[_key(kind)] for kind in kinds]
    content: dict[str, Any] = {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}
    if one.example is not None:
        content["example"] = one.example
    required = one.bodies != () or any(field.required for field in msgspec.structs.fields(one.body))
    return {"required": required, "content": {"application/json": content}}


def _responses(one: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {str(one.status): _answer(one, schema_of)}
    for status, kind in one.other_answers:
        responses[str(status)] = _answer(replace(one, status=status, answer=kind), schema_of)
    if one.fenced:
        not_yet = "Committed; the fence does not hold yet."
        responses["202"] = {**_answer(one, schema_of), "description": not_yet}
    if one.path == "/readyz":
        responses["503"] = _answer(one, schema_of)
    by_status: dict[int, list[str]] = {}
    for code in _codes(one):
        by_status.setdefault(TABLE[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses.setdefault(str(status), _problems(codes, schema_of))
    return responses


def _codes(one: Operation) -> tuple[str, ...]:
    codes: tuple[str, ...] = _EVERYWHERE
    if not (one.proxied or (one.idempotent and one.conditional)):
        codes += ("unsupported_header",)
    if one.permissions:
        codes += _WITH_CALLER
    if one.method != "GET":
        codes += _WITH_BODY
    elif one.permissions:
        codes += ("position_not_reached", "position_unknown")
    return tuple(dict.fromkeys((*codes, *one.codes)))


def _answer(one: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": "Made." if one.status == _CREATED else "As asked.",
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if one.permissions:
        described["headers"]["X-Keyledger-Position"] = {"schema": {"type": "string"}}
    if one.shown_at and one.status in {_CREATED, 202}:
        described["headers"]["Location"] = {
            "schema": {"type": "string"},
            "description": f"Where what was made is shown: `{one.shown_at}`.",
        }
    if one.versioned:
        described["headers"]["ETag"] = {"schema": {"type": "string"}}
    if one.answer is not None:
        described["content"] = {
            media_type: {"schema": schema_of[_key(one.answer)] if media_type == _JSON else {"type": "string"}}
            for media_type in one.media_types
        }
    return described


def _problems(codes: list[str], schema_of: dict[str, Any]) -> dict[str, Any]:
    meaning = TABLE[codes[0]]
    example = {
        "type": TYPE_PREFIX + codes[0],
        "title": meaning.title,
        "status": meaning.status,
        "detail": meaning.title + ".",
        "code": codes[0],
        "request_id": "req_1f0c2a7b9d3e1",
    }
    return {
        "description": "; ".join(f"`{code}`: {TABLE[code].title}" for code in codes),
        "content": {PROBLEM_JSON: {"schema": schema_of[_key(Problem)], "example": example}},
    }
