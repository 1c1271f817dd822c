"""JSON schemas of what is asked and answered, made from the types that read and write it."""

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
"""Is put behind the name of what is asked, where an answer has the same type with other promises."""

Json = dict[str, Any]


class Schemas:
    """The schemas of a set of types, under the names that the document gives them."""

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
        """What a body or a query is."""
        schema: Json = self._asked[repr(kind)]
        return schema

    def answered(self, kind: Any) -> Json:
        """What an answer is."""
        schema: Json = self._answered[repr(kind)]
        return schema

    def taken(self, kind: type[msgspec.Struct]) -> Json:
        """The schema of parameters, which is no component: each is listed by itself."""
        schema: Json = self.components.pop(self.asked(kind)["$ref"].removeprefix(REF), {})
        return schema


def _made(kinds: list[Any], finish: Callable[[type[msgspec.Struct], Json], None]) -> tuple[Json, Json]:
    """Each kind's schema by its `repr`, and the components that they refer to."""
    structs = list(structs_in(kinds))
    every = [*kinds, *(one for one in structs if one not in kinds)]
    schemas, components = msgspec.json.schema_components(every, ref_template=_TEMPLATE)
    for struct in structs:
        finish(struct, components[struct.__name__])
    components = {name: _tidy(schema) for name, schema in components.items()}
    return {repr(kind): _tidy(schema) for kind, schema in zip(every, schemas, strict=True)}, components


def _asks(struct: type[msgspec.Struct], schema: Json) -> None:
    """What is asked. A body's defaults are told in words: many generators take what has one for needed."""
    for _, about in _noted(struct, schema):
        default = about.pop("default", None)
        if default is not None and issubclass(struct, Query):
            about["default"] = default
        elif isinstance(default, bool | int) or (isinstance(default, str) and default):
            told = about.get("description") or _lifted(about)
            about["description"] = f"{told} `{msgspec.json.encode(default).decode()}` if left out.".strip()


def _answers(struct: type[msgspec.Struct], schema: Json) -> None:
    """What is answered: every field is there, but for those that say when they are not."""
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
    """A struct's fields in its schema, each with what is written under it."""
    notes, fields = notes_of(struct), list(schema.get("properties", {}).items())
    for name, about in fields:
        note = notes.get(name) or about.get("description") or _lifted(about)
        if note:
            about["description"] = note
        for one in about.get("anyOf", ()):
            one.pop("description", None)
    return fields


def _lifted(schema: Json) -> str:
    """What is written about a field that may be null too."""
    return next(filter(None, (one.get("description", "") for one in schema.get("anyOf", ()))), "")


def _tidy(schema: Any) -> Any:
    """Without what a type says beside the name of another schema, and without titles: they are its name."""
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
    """Names under which the two mean different things, or something that does."""
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


# -- what has a name, and no type


def _named() -> Json:
    """What fields name and no type is: codes, each with what it means, and events."""
    verdicts = {code: TABLE[code].title for code in STATUS_OF_CODE if code != VALID}
    verdicts["not_found"] = "There is no such secret"
    problems = {code: meaning.title for code, meaning in TABLE.items()}
    return {
        "VerdictCode": _enum_of(
            "The outcome of checking a secret against a use.", {VALID: "Go ahead", **verdicts}
        ),
        "ProblemCode": _enum_of("Why a request was refused.", problems),
        "EventData": {
            "type": "object",
            "additionalProperties": True,
            "description": "What an event holds, by its type: `docs/events.md` lists the fields of each.",
        },
    }


def _enum_of(about: str, meanings: dict[str, str]) -> Json:
    """A text that is one of these; new ones may come, and one that is not known means no."""
    listed = "\n".join(f"- `{code}`: {meaning}." for code, meaning in meanings.items())
    return {
        "type": "string",
        "enum": list(meanings),
        "description": f"{about} More may come: one that you do not know means no.\n\n{listed}",
    }
