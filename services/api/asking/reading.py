"""Bodies and queries are read strictly, in one place, and errors name the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import compress
from operator import itemgetter
from string import ascii_letters, digits
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec
from msgspec.structs import astuple

from domain.metadata import MAX_METADATA_DEPTH, is_deeper
from services.api.answering.problems import FieldError, ProblemError, invalid
from services.api.asking.fields import CREDENTIAL, MAX_METADATA_BYTES, METADATA, NOT_KEPT

T = TypeVar("T", bound=msgspec.Struct)

HoldsSecret = Callable[[str], bool]
"""Whether a text contains what looks like a secret of a keyspace."""

_MOST_PARAMETERS: Final = 100
_INT64: Final = range(-(2**63), 2**63)
_NOT_IN_TEXT: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Unicode's control characters except tab and line breaks, characters that change the direction of text
(CVE-2021-42574), and halves of surrogate pairs."""
_MAY_SPELL_ONE: Final = re.compile(
    rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]"
    rb"|\\[bf]|\\u(?:00[01789]|20[26]|[dD][89a-fA-F])"
)
"""The only encodings of characters of `_NOT_IN_TEXT` in a body that the decoder accepts."""
_BACKSLASH, _DELETE = 0x5C, 0x7F
_HALF_A_PAIR: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*+)"
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
"""A pair of surrogates, or half of one; before it only escaped backslashes."""
_LETTERS: Final = ascii_letters + digits
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")


class BodyReader(Generic[T]):
    """Reads bodies of one type. A missing body is the same as an empty object.

    Raises ProblemError, which names the field: `malformed_body` if it is not JSON, `invalid_request` for all
    else. In addition to the type's own rules, no text may contain control characters or (except in fields
    for secrets) a secret, since names, tags and reasons are shown, searched and stored; integers have 64
    bits; metadata is small and flat.
    """

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        # What a decoder skips, it does not check: it may not even be JSON.
        self._passes_over = not kind.__struct_config__.forbid_unknown_fields
        self._looks = _looked_at(kind)
        self._pick = _picker([kind.__struct_fields__.index(name) for name, _ in self._looks])
        # Most requests leave most fields out, and need only one comparison.
        self._nothing = (None,) * len(self._looks)

    def __call__(self, data: bytes, holds_secret: HoldsSecret) -> T:
        """Read the body."""
        data = data or b"{}"
        try:
            body = self._decode(data)
            if self._passes_over:
                msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body, data = self._decoded(data)
        values = self._pick(astuple(body))
        if values != self._nothing:
            self._look_at(values, holds_secret)
        if may_spell_one(data):
            _refuse_control_characters(body)
        return body

    def look_at(self, body: T, holds_secret: HoldsSecret, *, spelled: bool) -> None:
        """Check what the type does not; `spelled`: whether the body may contain control characters."""
        values = self._pick(astuple(body))
        if values != self._nothing:
            self._look_at(values, holds_secret)
        if spelled:
            _refuse_control_characters(body)

    def _look_at(self, values: tuple[Any, ...], holds_secret: HoldsSecret) -> None:
        # Only given fields: UNSET is false, too.
        for (name, look), value in zip(compress(self._looks, values), filter(None, values), strict=True):
            look(value, name, holds_secret)

    def _decoded(self, data: bytes) -> tuple[T, bytes]:
        """Decode a body that the decoder does not accept as it is."""
        marked = _marked(data)
        try:
            with suppress(msgspec.ValidationError):
                msgspec.json.decode(marked)  # a truncated body is not JSON, whatever its first half contains
            return self._decode(marked), marked
        except msgspec.ValidationError as error:
            raise complaint(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise malformed() from None


class BatchReader(Generic[T]):
    """Reads a batch of bodies, each on its own: an invalid one becomes its error, and the others are read.

    `batch` has them as its `items`, and bounds their number.
    """

    def __init__(self, kind: type[T], batch: type[Any]) -> None:
        self._item = BodyReader(kind)
        self._whole = msgspec.json.Decoder(batch).decode
        (items,) = msgspec.structs.fields(batch)
        bound: Any = msgspec.inspect.type_info(items.type)
        length = msgspec.Meta(min_length=bound.min_length, max_length=bound.max_length)
        raw = Annotated[list[msgspec.Raw], length]
        self._apart: BodyReader[Any] = BodyReader(
            msgspec.defstruct("Apart", [("items", raw)], forbid_unknown_fields=True)
        )

    def __call__(self, data: bytes, holds_secret: HoldsSecret) -> list[T | ProblemError]:
        """Each item's body or refusal, in order; raises ProblemError if the body around them is invalid."""
        try:
            items: list[T] = self._whole(data).items
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # One by one takes seven times as long, so it is done only if one cannot be decoded.
            return [self._read(bytes(one), holds_secret) for one in self._apart(data, holds_secret).items]
        spelled = may_spell_one(data)
        return [self._looked_at(one, holds_secret, spelled=spelled) for one in items]

    def _read(self, data: bytes, holds_secret: HoldsSecret) -> T | ProblemError:
        try:
            return self._item(data, holds_secret)
        except ProblemError as error:
            return error

    def _looked_at(self, item: T, holds_secret: HoldsSecret, *, spelled: bool) -> T | ProblemError:
        try:
            self._item.look_at(item, holds_secret, spelled=spelled)
        except ProblemError as error:
            return error
        return item


@cache
def reader_of(kind: type[T]) -> BodyReader[T]:
    """The reader of bodies of this type."""
    return BodyReader(kind)


def read_query(query: bytes, kind: type[T], *, others: Callable[[str], bool] | None = None) -> T:
    """The query parameters; an unknown or repeated one is refused by its name.

    `others` says which names belong to others; these are ignored.
    """
    given: dict[str, str] = {}
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, value in read_pairs(query):
        if name not in known:
            if others is not None and others(name):
                continue
            raise invalid(beginning(name), "is not a parameter of this request")
        if name in given:
            raise invalid(name, "is given twice")
        if _NOT_IN_TEXT.search(value):
            raise invalid(name, "must not contain control characters")
        given[name] = value
    try:
        asked = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _with_choices(complaint(str(error)), kind) from None
    for field in msgspec.structs.fields(kind):
        # The word `null` would be read as no value: a filter with it would list everything.
        if field.encode_name in given and getattr(asked, field.name) is None:
            raise _with_choices(invalid(field.encode_name, "must not be null"), kind)
    return asked


def _with_choices(problem: ProblemError, kind: type[Any]) -> ProblemError:
    """The same problem; if the parameter takes one of a few names, the message lists them."""
    for field in msgspec.structs.fields(kind):
        names = [name for each in (field.type, *get_args(field.type)) for name in _names_in(each)]
        if names and problem.errors[0].field == field.encode_name:
            return invalid(field.encode_name, f"one of {', '.join(names)}")
    return problem


def _names_in(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def read_pairs(query: bytes) -> list[tuple[str, str]]:
    """The names and values of a query, in order."""
    try:
        return parse_qsl(
            query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError:
        raise invalid("query", "must be percent-encoded UTF-8") from None


def beginning(text: str, most: int = 100) -> str:
    """The part of a text that an answer repeats. If it is cut, no part of a secret is left at its end."""
    return text if len(text) <= most else text[:most].rstrip(_LETTERS) + "..."


def malformed() -> ProblemError:
    """The body is not JSON."""
    return ProblemError(
        "malformed_body",
        "The body is not JSON in UTF-8, or is nested too deeply.",
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


# -- what is checked in bodies of all types


def may_spell_one(data: bytes) -> bool:
    """Whether a text in this body may contain a character that no text may contain; seldom true."""
    # Searching for a number is eight times as fast as for a byte string of length 1.
    if data.isascii() and _BACKSLASH not in data and _DELETE not in data:
        return False
    return _MAY_SPELL_ONE.search(data) is not None


_Look = Callable[[Any, str, HoldsSecret], None]


def _looked_at(kind: type[msgspec.Struct]) -> list[tuple[str, _Look]]:
    """The fields of a type whose values need a further check, and the check of each."""
    found: list[tuple[str, _Look]] = []
    for field in msgspec.structs.fields(kind):
        about = msgspec.inspect.type_info(field.type)
        marks, kinds = _marks_of(about), set(_kinds_of(about))
        if marks.get(METADATA):
            found.append((field.name, _look_at_metadata))
        elif not (
            marks.get(CREDENTIAL) or marks.get(NOT_KEPT) or kinds <= _CANNOT_HOLD or _is_bounded(about)
        ):
            of_text = kinds <= {msgspec.inspect.StrType, msgspec.inspect.NoneType}
            found.append((field.name, _look_at_text if of_text else _look_into))
    return found


def _picker(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Picks the values at these indexes; costs a third of an attrgetter of as many fields."""
    return itemgetter(*places) if len(places) > 1 else lambda values: tuple(values[one] for one in places)


_CANNOT_HOLD: Final = frozenset({
    msgspec.inspect.NoneType, msgspec.inspect.BoolType, msgspec.inspect.LiteralType,
    msgspec.inspect.DateTimeType, msgspec.inspect.RawType,
})  # fmt: skip


def _is_bounded(about: msgspec.inspect.Type) -> bool:
    """A number that the decoder keeps within 64 bits."""
    if isinstance(about, msgspec.inspect.Metadata):
        return _is_bounded(about.type)
    if isinstance(about, msgspec.inspect.UnionType):
        return all(_is_bounded(one) or type(one) in _CANNOT_HOLD for one in about.types)
    return isinstance(about, msgspec.inspect.IntType) and None not in (about.ge, about.le)


def _marks_of(about: msgspec.inspect.Type) -> dict[str, Any]:
    if isinstance(about, msgspec.inspect.Metadata):
        return {**(about.extra or {}), **_marks_of(about.type)}
    if isinstance(about, msgspec.inspect.UnionType):
        return {name: mark for one in about.types for name, mark in _marks_of(one).items()}
    return {}


def _kinds_of(about: msgspec.inspect.Type) -> Iterator[type]:
    if isinstance(about, msgspec.inspect.Metadata):
        yield from _kinds_of(about.type)
    elif isinstance(about, msgspec.inspect.UnionType):
        for one in about.types:
            yield from _kinds_of(one)
    else:
        yield type(about)


def _look_at_metadata(value: dict[str, Any], path: str, holds_secret: HoldsSecret) -> None:
    if is_deeper(value):
        raise invalid(path, f"may be nested at most {MAX_METADATA_DEPTH} deep")
    _look_into(value, path, holds_secret)
    if len(msgspec.json.encode(value)) > MAX_METADATA_BYTES:
        raise invalid(path, f"may have at most {MAX_METADATA_BYTES} bytes as JSON")


def _look_at_text(value: str, path: str, holds_secret: HoldsSecret) -> None:
    if holds_secret(value):
        raise _shows_secret(path)


def _look_into(value: Any, path: str, holds_secret: HoldsSecret) -> None:
    for leaf, at in _leaves(value, path):
        if isinstance(leaf, str):
            if holds_secret(leaf):
                raise _shows_secret(at)
        elif isinstance(leaf, int) and leaf not in _INT64:
            raise invalid(at, "exceeds a signed 64-bit integer")


def _refuse_control_characters(body: msgspec.Struct) -> None:
    for leaf, at in _leaves(body, ""):
        if isinstance(leaf, str) and _NOT_IN_TEXT.search(leaf):
            raise invalid(at or "body", "must not contain control characters")


def _leaves(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Texts, numbers and names, each with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, path
            yield from _leaves(inner, _join(path, beginning(name)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    elif isinstance(value, msgspec.Struct):
        for name, shown in _fields_of(type(value)):
            yield from _leaves(getattr(value, name), _join(path, shown))
    else:
        yield value, path


@cache  # called for each of a thousand keys in one import
def _fields_of(kind: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """The names of a struct's fields, in Python and in JSON."""
    return tuple((field.name, field.encode_name) for field in msgspec.structs.fields(kind))


def _shows_secret(path: str) -> ProblemError:
    return invalid(path, "contains what looks like a secret, which may not be here")


def _marked(data: bytes) -> bytes:
    """The same body, with the escape of NUL (not allowed either) for each half of a surrogate pair.

    The decoder treats a body with such a half as malformed, although it is JSON; this way the field can be
    named, and the other items of a batch are answered.
    """
    return _HALF_A_PAIR.sub(lambda found: found[1] + rb"\u0000" if found[2] else found[0], data)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
