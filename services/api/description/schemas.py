"""JSON schemas of requests and answers, made from the types that read and write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from keyledger_language import STATUS_OF_CODE, VALID
from services.api.answering.problems import TABLE
from services.api.answering.verdicts import ONE_OF
from services.api.description.field_notes import notes_of, structs_in
from services.api.operations import Query

REF: Final = "#/components/schemas/"
_TEMPLATE: Final = REF + "{name}"
_ASKED: Final = "Body"
"""Added to a request type's name if an answer has the same type with another schema."""

Json = dict[str, Any]


class Schemas:
    """The schemas of a set of types, by their names in the document."""

    def __init__(self, asked: Iterable[Any], answered: Iterable[Any]) -> None:
        asked, answered = list(asked), list(answered)
        self._asked, bodies = _made(asked, _asks)
        self._answered, self.components = _made(answered, _answers)
        other = {name: name + _ASKED for name in _differing(bodies, self.components)}
        for name, schema in bodies.items():
            self.components[other.get(name, name)] = _renamed(schema, other)
        self._asked = {kind: _renamed(schema, other) for kind, schema in self._asked.items()}
        self.components |= _named()

    def asked(self, kind: Any) -> Json:
        """The schema of a body or a query."""
        schema: Json = self._asked[repr(kind)]
        return schema

    def answered(self, kind: Any) -> Json:
        """The schema of an answer."""
        schema: Json = self._answered[repr(kind)]
        return schema

    def taken(self, kind: type[msgspec.Struct]) -> Json:
        """The schema of parameters, which is not a component: each is listed by itself."""
        schema: Json = self.components.pop(self.asked(kind)["$ref"].removeprefix(REF), {})
        return schema


def _made(kinds: list[Any], finish: Callable[[type[msgspec.Struct], Json], None]) -> tuple[Json, Json]:
    """Each type's schema by its `repr`, and the components that they refer to."""
    structs = list(structs_in(kinds))
    every = [*kinds, *(one for one in structs if one not in kinds)]
    schemas, components = msgspec.json.schema_components(every, ref_template=_TEMPLATE)
    for struct in structs:
        finish(struct, components[struct.__name__])
    components = {name: _tidy(schema) for name, schema in components.items()}
    return {repr(kind): _tidy(schema) for kind, schema in zip(every, schemas, strict=True)}, components


def _asks(struct: type[msgspec.Struct], schema: Json) -> None:
    """Finish a request's schema. A body has defaults in words: many generators require fields with one."""
    for _, about in _noted(struct, schema):
        default = about.pop("default", None)
        if default is not None and issubclass(struct, Query):
            about["default"] = default
        elif isinstance(default, bool | int) or (isinstance(default, str) and default):
            told = about.get("description") or _lifted(about)
            about["description"] = f"{told} `{msgspec.json.encode(default).decode()}` if left out.".strip()


def _answers(struct: type[msgspec.Struct], schema: Json) -> None:
    """Finish the schema of an answer: every field is present, except those that say when they are absent."""
    for _, about in _noted(struct, schema):
        about.pop("default", None)
    leaves_out = struct.__struct_config__.omit_defaults
    always = [
        field.encode_name
        for field in msgspec.structs.fields(struct)
        if field.default is not msgspec.UNSET and (field.required or not leaves_out)
    ]
    schema["required"] = always


def _noted(struct: type[msgspec.Struct], schema: Json) -> list[tuple[str, Json]]:
    """A struct's fields in its schema, each with the note under its declaration."""
    notes, fields = notes_of(struct), list(schema.get("properties", {}).items())
    for name, about in fields:
        note = notes.get(name) or about.get("description") or _lifted(about)
        if note:
            about["description"] = note
        for one in about.get("anyOf", ()):
            one.pop("description", None)
    return fields


def _lifted(schema: Json) -> str:
    """The description of a field that may also be null."""
    return next(filter(None, (one.get("description", "") for one in schema.get("anyOf", ()))), "")


def _tidy(schema: Any) -> Any:
    """Without what is given next to a reference to another schema, and without titles, which repeat names."""
    if isinstance(schema, list):
        return [_tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = schema.pop(ONE_OF, None)
    if kinds is not None:
        return {"oneOf": [{"$ref": REF + kind} for kind in kinds]}
    tidied = {name: _tidy(value) for name, value in schema.items()}
    if "$ref" in tidied or "anyOf" in tidied:
        tidied.pop("type", None)
    if isinstance(tidied.get("title"), str):
        del tidied["title"]
    return tidied


def _differing(ours: Json, theirs: Json) -> set[str]:
    """Names under which the two differ, or refer to something that differs."""
    found = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    while True:
        more = {name for name in ours.keys() & theirs.keys() if _references(ours[name]) & found} - found
        if not more:
            return found
        found |= more


def _references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].removeprefix(REF)} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_references, schema.values()))


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(one, names) for one in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {name: _renamed(value, names) for name, value in schema.items()}
    if isinstance(schema.get("$ref"), str):
        name: str = schema["$ref"].removeprefix(REF)
        renamed["$ref"] = REF + names.get(name, name)
    return renamed


# -- what has a name but no type


def _named() -> Json:
    """What fields refer to but no type declares: codes, each with its meaning, and events."""
    verdicts = {code: TABLE[code].title for code in STATUS_OF_CODE if code != VALID}
    verdicts["not_found"] = "There is no such secret"
    problems = {code: meaning.title for code, meaning in TABLE.items()}
    return {
        "VerdictCode": _enum_of(
            "The outcome of checking a secret against a use.", {VALID: "The use may go ahead", **verdicts}
        ),
        "ProblemCode": _enum_of("Why a request was refused.", problems),
        "EventData": {
            "type": "object",
            "additionalProperties": True,
            "description": "An event's fields, by its type: `docs/events.md` lists them.",
        },
    }


def _enum_of(about: str, meanings: dict[str, str]) -> Json:
    """A string that is one of these codes; new ones may be added, and an unknown one means no."""
    listed = "\n".join(f"- `{code}`: {meaning}." for code, meaning in meanings.items())
    return {
        "type": "string",
        "enum": list(meanings),
        "description": f"{about} More may be added: one that you do not know means no.\n\n{listed}",
    }
