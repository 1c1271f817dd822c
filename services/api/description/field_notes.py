"""The docstrings under fields: a field is described where it is declared, and nowhere else."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as shapes

from services.api.answering.verdicts import ONE_OF


@cache
def notes_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The docstrings under a type's fields, by the fields' names in JSON."""
    named = {field.name: field.encode_name for field in msgspec.structs.fields(struct)}
    notes: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        if issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct:
            notes |= {named[name]: note for name, note in _written_in(kind) if name in named}
    return notes


def _written_in(kind: type) -> Iterator[tuple[str, str]]:
    body = _classes_in(kind.__module__).get(kind.__name__)
    if body is None:
        return
    for field, note in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(note, ast.Expr)
            and isinstance(note.value, ast.Constant)
            and isinstance(note.value.value, str)
        ):
            yield field.target.id, " ".join(note.value.value.split())


@cache
def _classes_in(module: str) -> dict[str, ast.ClassDef]:
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):  # built without its source: then there are no notes
        return {}
    return {one.name: one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)}


def structs_in(kinds: Iterable[Any]) -> Iterator[type[msgspec.Struct]]:
    """All structs in these types, nested ones included, each once."""
    seen: set[type[msgspec.Struct]] = set()
    waiting: list[Any] = list(shapes.multi_type_info(list(kinds)))
    while waiting:
        shape = waiting.pop()
        if isinstance(shape, shapes.StructType):
            if shape.cls in seen:
                continue
            seen.add(shape.cls)
            yield shape.cls
        waiting += _within(shape)


def _within(shape: Any) -> Iterator[Any]:
    if isinstance(shape, shapes.Metadata) and shape.extra and ONE_OF in shape.extra:
        yield from shapes.multi_type_info(shape.extra[ONE_OF])
    for name in ("fields", "item_types", "types"):
        for one in getattr(shape, name, ()):
            yield getattr(one, "type", one)
    for name in ("item_type", "key_type", "value_type", "type"):
        if isinstance(one := getattr(shape, name, None), shapes.Type):
            yield one
