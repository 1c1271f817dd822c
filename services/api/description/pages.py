"""The API description as one page for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from services.api.answering.problems import TABLE
from services.api.description.openapi import sentence
from services.api.operations import Operation

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 2rem 1rem 6rem; }
h2 { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1.5rem; }
h3 { margin: 2.2rem 0 .3rem; } h3 code { font-size: 1rem; }
nav ul { columns: 3 14rem; list-style: none; padding: 0; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); border-radius: 6px; overflow-x: auto; padding: .8rem 1rem; }
table { border-collapse: collapse; font-size: .92em; margin: .5rem 0 1rem; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; }
td { vertical-align: top; } summary { cursor: pointer; margin: .4rem 0; }
.method { border: 1px solid var(--line); border-radius: 4px; font-weight: 600; padding: .1rem .45rem; }
.quiet { opacity: .75; }
"""


def page_of(description: dict[str, Any], operations: Sequence[Operation]) -> str:
    """The whole page."""
    tags = [tag for tag in description["tags"] if any(one.tag == tag["name"] for one in operations)]
    sections = "".join(_section(tag, operations, description) for tag in tags)
    links = "".join(f'<li><a href="#{escape(t["name"])}">{escape(t["name"])}</a></li>' for t in tags)
    info = description["info"]
    paragraphs = "".join(f"<p>{_prose(part)}</p>" for part in info["description"].strip().split("\n\n"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Keyledger HTTP API</title><style>{_STYLE}</style></head><body>"
        f'<h1>Keyledger HTTP API <span class="quiet">{escape(info["version"])}</span></h1>{paragraphs}'
        '<p>As OpenAPI 3.1: <a href="/schema/openapi.json">/schema/openapi.json</a></p>'
        f'<nav><ul>{links}<li><a href="#types">Types</a></li>'
        f'<li><a href="#errors">Errors</a></li></ul></nav>{sections}'
        f"{_types(description)}{_errors()}</body></html>"
    )


def _section(tag: dict[str, Any], operations: Iterable[Operation], description: dict[str, Any]) -> str:
    body = "".join(_operation(one, description) for one in operations if one.tag == tag["name"])
    name = escape(tag["name"])
    return f'<h2 id="{name}">{name}</h2><p>{_prose(tag["description"])}</p>{body}'


def _operation(one: Operation, description: dict[str, Any]) -> str:
    described = description["paths"][one.path][one.method.lower()]
    parts = [
        f'<h3 id="{one.name}"><span class="method">{one.method}</span> <code>{escape(one.path)}</code></h3>',
        f'<p>{sentence(one.summary)} <span class="quiet"><code>{one.name}</code></span></p>',
    ]
    if described["description"] != sentence(one.summary):
        parts.append(f"<p>{_prose(described['description'])}</p>")
    parts += [
        _parameters(described["parameters"]),
        _fields("Body", described.get("requestBody"), description),
    ]
    parts.append(_example("Example body", described.get("requestBody")))
    granted: list[tuple[str, Any]] = []
    refused: list[tuple[str, Any]] = []
    for status, answer in described["responses"].items():
        (granted if int(status) in {200, 201} else refused).append((status, answer))
    for status, answer in granted:
        parts.append(_fields(f"Answer {status}", answer, description))
        parts.append(_example(f"Example answer {status}", answer))
        parts.append(_headers(answer, description))
    rows = "".join(f"<tr><td>{status}</td><td>{_prose(a['description'])}</td></tr>" for status, a in refused)
    parts.append(f"<details><summary>Other answers</summary><table>{rows}</table></details>")
    return "".join(parts)


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code>{'' if one['required'] else ' <i>optional</i>'}</td>"
        f"<td>{one['in']}</td><td>{_type_of(one['schema'])}</td><td>{_prose(one['description'])}</td></tr>"
        for one in parameters
    )
    return f"<table><tr><th colspan=4>Parameters</th></tr>{rows}</table>"


def _headers(answer: dict[str, Any], description: dict[str, Any]) -> str:
    known = description["components"]["headers"]
    rows = "".join(
        f"<tr><td><code>{name}</code></td><td>{_prose(known[name]['description'])}</td></tr>"
        for name in answer["headers"]
    )
    return f"<details><summary>Headers of the answer</summary><table>{rows}</table></details>"


def _example(title: str, holder: dict[str, Any] | None) -> str:
    example = ((holder or {}).get("content") or {}).get("application/json", {}).get("example")
    if example is None:
        return ""
    shown = escape(json.dumps(example, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{shown}</pre></details>"


def _fields(title: str, holder: dict[str, Any] | None, description: dict[str, Any]) -> str:
    schema = ((holder or {}).get("content") or {}).get("application/json", {}).get("schema")
    if schema is None:
        return ""
    options = [*schema.get("oneOf", ()), *schema.get("anyOf", ())] or [schema]
    return "".join(_table(title, option, description) for option in options)


def _table(title: str, schema: dict[str, Any], description: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved = description["components"]["schemas"].get(name, schema)
    properties = resolved.get("properties")
    if not properties:
        return ""
    required = resolved.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else ' <i>optional</i>'}</td>"
        f"<td>{_type_of(about)}</td><td>{_prose(about.get('description', ''))}</td></tr>"
        for field, about in properties.items()
    )
    caption = f"{title}: {_prose(resolved.get('description', ''))}"
    return f"<table><tr><th colspan=3>{caption}</th></tr>{rows}</table>"


def _type_of(schema: dict[str, Any]) -> str:
    for options in (schema.get("anyOf"), schema.get("oneOf")):
        if options:
            return " or ".join(dict.fromkeys(_type_of(one) for one in options))
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#type-{name}">{name}</a>'
    if "enum" in schema:
        return ", ".join(f"<code>{escape(json.dumps(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {})) or 'values'}"
    return escape(str(schema.get("format") or schema.get("type", "")))


def _types(description: dict[str, Any]) -> str:
    """The types that fields refer to by name."""
    schemas = description["components"]["schemas"]
    named = sorted(_named_in([schema.get("properties", {}) for schema in schemas.values()]))
    tables = "".join(_type_section(name, schemas[name], description) for name in named)
    return f'<h2 id="types">Types</h2><p>The types that fields refer to.</p>{tables}'


def _type_section(name: str, schema: dict[str, Any], description: dict[str, Any]) -> str:
    heading = f'<h3 id="type-{name}"><code>{name}</code></h3>'
    if "properties" in schema:
        return heading + _table(name, schema, description)
    about, _, listed = schema["description"].partition("\n\n")
    items = "".join(f"<li>{_prose(line.removeprefix('- '))}</li>" for line in listed.splitlines())
    return f"{heading}<p>{_prose(about)}</p><ul>{items}</ul>"


def _named_in(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_named_in, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(_named_in, value.values()))


def _errors() -> str:
    rows = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td>{meaning.status}</td>'
        f"<td>{escape(meaning.title)}</td></tr>"
        for code, meaning in TABLE.items()
    )
    return (
        '<h2 id="errors">Errors</h2><p>RFC 9457 problem details; <code>code</code> is stable, and one that '
        f"you do not know means no.</p><table><tr><th>code</th><th>status</th><th></th></tr>{rows}</table>"
    )


def _prose(text: str) -> str:
    """Text with `code` marked up."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
