"""Bodies and queries: read strictly, and what is wrong is named by its field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from string import ascii_letters, digits
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from domain.metadata import MAX_METADATA_DEPTH
from keyledger_edge import SecretShape
from services.api.answering.problems import FieldError, ProblemError, invalid
from services.redaction import may_hold_secret

T = TypeVar("T", bound=msgspec.Struct)

_MOST_DEPTH: Final = MAX_METADATA_DEPTH + 8
"""Of a whole body; metadata, which alone may be deep, says its own bound, also inside an import's items."""
_MOST_PARAMETERS: Final = 100
_INT64: Final = range(-(2**63), 2**63)
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LETTERS: Final = ascii_letters + digits
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")


def read_body(data: bytes, kind: type[T], shapes: Iterable[SecretShape] = ()) -> T:
    """The body, or a problem that names the field.

    No body is the same as an empty object. A secret of `shapes` is refused wherever it stands:
    names, tags and reasons are shown, searched and kept.
    """
    data = data or b"{}"
    try:
        plain = msgspec.json.decode(data)
    except msgspec.ValidationError as error:
        _decoded(data, kind)  # A number out of range: the typed decoder may know its field.
        raise complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed() from None
    _check(plain, "", 0, tuple(shapes))
    return _decoded(data, kind)


def read_query(query: bytes, kind: type[T]) -> T:
    """The query parameters; an unknown or repeated one is refused by its name."""
    given: dict[str, str] = {}
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, value in read_pairs(query):
        if name not in known:
            raise invalid(beginning(name), "is not a parameter of this request")
        if name in given:
            raise invalid(name, "is given twice")
        if _CONTROL.search(value):
            raise invalid(name, "must not hold control characters")
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise complaint(str(error)) from None


def beginning(text: str, most: int = 100) -> str:
    """What an answer repeats of a text. Where it is cut, nothing is left of a secret that was cut through."""
    return text if len(text) <= most else text[:most].rstrip(_LETTERS) + "..."


def read_pairs(query: bytes) -> list[tuple[str, str]]:
    """Names and values as they stand in a query."""
    try:
        return parse_qsl(
            query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError:
        raise invalid("query", "percent-encoded UTF-8") from None


def malformed() -> ProblemError:
    """The body is no JSON at all."""
    return ProblemError(
        "malformed_body",
        "The body is not JSON in UTF-8, or is nested too deep.",
        errors=(FieldError(field="body", message="JSON in UTF-8"),),
    )


def complaint(message: str) -> ProblemError:
    """A decoder's complaint as a problem that names the field, such as `items[3].amount_micros`."""
    found = _PLACE.search(message)
    path = found["path"] if found else ""
    sentence = message[: found.start()] if found else message
    if missing := _MISSING.match(sentence):
        return invalid(_join(path, missing["field"]), "is required")
    if unknown := _UNKNOWN.match(sentence):
        return invalid(_join(path, beginning(unknown["field"])), "is not a field of this request")
    if sentence.endswith(r"matching regex '\\S'"):
        sentence = "must not be blank"
    field = "body" if path.startswith("[...]") else path or "body"
    return invalid(field, sentence.replace("`", ""))


def known_shapes(shapes: Iterable[SecretShape]) -> Iterator[SecretShape]:
    """Shapes that can be told from other text: those of imported secrets only where they have a prefix."""
    for shape in shapes:
        accepted = tuple(one for one in shape.accepted if one.prefix)
        yield (
            shape
            if accepted == shape.accepted
            else SecretShape(prefix=shape.prefix, format=shape.format, accepted=accepted)
        )


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        body: T = _decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        raise complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed() from None
    return body


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:  # any type; the caller knows which
    return msgspec.json.Decoder(kind)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _check(value: Any, path: str, depth: int, shapes: tuple[SecretShape, ...]) -> None:
    if isinstance(value, str):
        _check_text(value, path, shapes)
    elif isinstance(value, int):
        if value not in _INT64:
            raise invalid(path or "body", "beyond a signed 64-bit integer")
    elif depth > _MOST_DEPTH:
        raise invalid(path or "body", f"nested more than {_MOST_DEPTH} deep")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, path, shapes)
            _check(inner, _join(path, beginning(name)), depth + 1, shapes)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{path}[{index}]", depth + 1, shapes)


def _check_text(text: str, path: str, shapes: tuple[SecretShape, ...]) -> None:
    if _CONTROL.search(text):
        raise invalid(path or "body", "must not hold control characters")
    if not may_hold_secret(text):
        return
    for shape in shapes:
        if shape.anywhere.search(text):
            raise invalid(path or "body", "holds what looks like a secret; it belongs nowhere else")
