"""The reader of bodies against one that takes its time: it decodes all, walks all, and skips nothing.

The quick one looks at the bytes first, and clears most bodies by that; it looks into those fields only
that may hold what their kinds say nothing of. Whatever the one refuses, the other does.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from services.api.answering.problems import ProblemError
from services.api.asking import reading
from services.api.asking.fields import CREDENTIAL, MAX_METADATA_BYTES, METADATA, NOT_KEPT
from services.api.asking.reading import BatchReader, BodyReader, may_spell_one, reader_of
from tests.api.world import EVERY_OPERATION

BIDI: Final = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
SECRET: Final = "sk_whole_secret"
DEEPEST: Final = 32
KINDS: Final = sorted(
    {
        kind
        for one in EVERY_OPERATION
        for kind in (one.items or one.body, *one.bodies)
        if kind.__struct_config__.forbid_unknown_fields and kind.__struct_fields__
    },
    key=lambda kind: kind.__name__,
)
BATCHES: Final = [(one.items, one.body) for one in EVERY_OPERATION if one.items is not None]


def holds_secret(text: str) -> bool:
    return SECRET in text


def may_stand_in_text(letter: str) -> bool:
    """By what Unicode says of it."""
    if letter in "\t\n\r":
        return True
    return unicodedata.category(letter) not in {"Cc", "Cs"} and letter not in BIDI


# -- the slow reader


def leaves(value: Any) -> Iterator[Any]:
    """Every text, name and number."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def without_bad_letters(value: Any) -> Any:
    """The same with letters in their place that every decoder takes."""
    if isinstance(value, str):
        return "".join(one if may_stand_in_text(one) else "x" for one in value)
    if isinstance(value, list):
        return [without_bad_letters(one) for one in value]
    if isinstance(value, dict):
        return {without_bad_letters(name): without_bad_letters(one) for name, one in value.items()}
    return value


def marks_of(about: msgspec.inspect.Type) -> set[str]:
    if isinstance(about, msgspec.inspect.Metadata):
        return set(about.extra or ()) | marks_of(about.type)
    if isinstance(about, msgspec.inspect.UnionType):
        return set().union(*map(marks_of, about.types))
    return set()


def refused_slowly(kind: type[msgspec.Struct], data: bytes) -> str | None:  # noqa: PLR0911  # as they come
    """The code that a body is refused with; None: it is taken."""
    try:
        value = json.loads(data.decode())
    except ValueError:
        return "malformed_body"
    try:
        msgspec.json.decode(json.dumps(without_bad_letters(value)), type=kind)
    except msgspec.ValidationError:
        return "invalid_request"
    if any(isinstance(one, str) and not all(map(may_stand_in_text, one)) for one in leaves(value)):
        return "invalid_request"
    for field in msgspec.structs.fields(kind):
        given_ = value.get(field.encode_name)
        marks = marks_of(msgspec.inspect.type_info(field.type))
        for one in leaves(given_):
            if isinstance(one, str) and not marks & {CREDENTIAL, NOT_KEPT} and holds_secret(one):
                return "invalid_request"
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                return "invalid_request"
        if (
            METADATA in marks
            and given_
            and (
                depth(given_) > DEEPEST
                or len(json.dumps(given_, ensure_ascii=False, separators=(",", ":")).encode())
                > MAX_METADATA_BYTES
            )
        ):
            return "invalid_request"
    return None


def refused(read: Callable[[bytes], Any], data: bytes) -> str | None:
    try:
        read(data)
    except ProblemError as error:
        return error.code if error.errors else "nothing is named"
    return None


# -- bodies of every kind, spelled as a client may spell them

ODD: Final = [*"\x00\x08\x0b\x1f\x7f\x80\x9f\ud800\udfff", *sorted(BIDI), SECRET]
NEARLY_ODD: Final = [*'\t\n\r \x7e\xa0\u2029\u202f\u2065\u206a\ud7ff\ue000é😀"\\/']
ODD_NUMBERS: Final = [-1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), -(2**63) - 1]
TEXTS = st.text("abcxyz09_-", min_size=2, max_size=12)
NUMBERS = st.integers(1, 100)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), TEXTS, NUMBERS, st.sampled_from(ODD_NUMBERS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
DEEP = st.integers(DEEPEST, DEEPEST + 1).map(lambda levels: json.loads('{"a":' * levels + "1" + "}" * levels))
LARGE = st.integers(MAX_METADATA_BYTES - 8, MAX_METADATA_BYTES - 7).map(lambda size: {"a": "x" * size})
TIMES = st.sampled_from(["2030-01-01T00:00:00Z", "2030-01-01T00:00:00+02:00"])


def fitting(about: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911  # one for each type
    """What a field takes; of metadata, also what it just does not."""
    inspect = msgspec.inspect
    if isinstance(about, inspect.Metadata):
        marked = METADATA in (about.extra or {})
        return st.one_of(fitting(about.type), DEEP, LARGE) if marked else fitting(about.type)
    if isinstance(about, inspect.UnionType):
        return st.one_of(*map(fitting, about.types))
    if isinstance(about, inspect.StructType):
        return objects(about.cls)
    if isinstance(about, inspect.ListType | inspect.VarTupleType):
        return st.lists(fitting(about.item_type), min_size=1, max_size=3)
    if isinstance(about, inspect.LiteralType):
        return st.sampled_from(about.values)
    if isinstance(about, inspect.StrType):
        shortest = max(about.min_length or 0, 2)
        return st.text("abcxyz09_-", min_size=shortest, max_size=max(shortest, 12))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        inspect.IntType: NUMBERS,
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
        inspect.DateTimeType: TIMES,
        inspect.DictType: st.dictionaries(TEXTS, ANY, min_size=1, max_size=3),
    }
    return plain.get(type(about), ANY)


def objects(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    fields = msgspec.structs.fields(kind)
    values = {one.encode_name: _value_of(one) for one in fields}
    needed = {one.encode_name: values[one.encode_name] for one in fields if one.required}
    others = {name: value for name, value in values.items() if name not in needed}
    return st.one_of(st.fixed_dictionaries(needed, optional=others), st.fixed_dictionaries(values))


def _value_of(field: msgspec.structs.FieldInfo) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: fitting(msgspec.inspect.type_info(field.type)))


def with_one_odd_thing(value: Any, random: Random) -> Any:
    """The same with one text, name or number that some reader minds, or just does not."""
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        return value[:at] + random.choice(random.choice([ODD, NEARLY_ODD])) + value[at:]
    if isinstance(value, list) and value:
        at = random.randrange(len(value))
        return [*value[:at], with_one_odd_thing(value[at], random), *value[at + 1 :]]
    if isinstance(value, dict) and value:
        names = sorted(value)
        # What is nested has its own ways of being read, so it is chosen more often.
        names += [name for name in names if isinstance(value[name], dict | list)] * 4
        name = random.choice(names)
        rest = {other: one for other, one in value.items() if other != name}
        if random.random() < 0.3:
            return {**rest, with_one_odd_thing(name, random): value[name]}
        return {**rest, name: with_one_odd_thing(value[name], random)}
    return random.choice(ODD_NUMBERS) if isinstance(value, int) and not isinstance(value, bool) else value


def spelled(value: Any, random: Random) -> str:
    """JSON, each letter as it is or escaped in one of the ways that there are."""
    if isinstance(value, str):
        return f'"{"".join(_letter(one, random) for one in value)}"'
    if isinstance(value, list):
        return f"[{','.join(spelled(one, random) for one in value)}]"
    if isinstance(value, dict):
        pairs = (f"{spelled(name, random)}:{spelled(one, random)}" for name, one in value.items())
        return f"{{{','.join(pairs)}}}"
    return json.dumps(value)


SHORT: Final = {
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    '"': r"\"",
    "\\": r"\\",
    "/": r"\/",
}


def _letter(letter: str, random: Random) -> str:
    ways = [] if letter < " " or letter in '"\\' or "\ud800" <= letter <= "\udfff" else [letter] * 8
    if letter in SHORT:
        ways.append(SHORT[letter])
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    units = random.choice([units.lower(), units.upper()])
    ways.append("".join(rf"\u{units[at : at + 4]}" for at in range(0, len(units), 4)))
    return random.choice(ways)


# -- proofs


def test_what_no_text_may_hold_is_what_unicode_calls_so() -> None:
    slow_look = reading._NOT_IN_TEXT.search
    wrong = [code for code in range(0x11_0000) if may_stand_in_text(chr(code)) == bool(slow_look(chr(code)))]

    assert [*map(hex, wrong)] == []


ESCAPES = st.one_of(
    st.integers(0, 0xFFFF).map(lambda unit: rf"\u{unit:04x}".encode()),
    st.integers(0, 0xFFFF).map(lambda unit: rf"\u{unit:04X}".encode()),
    st.sampled_from([rb"\b", rb"\f", rb"\n", rb"\\", rb"\"", rb"\/", rb"\\u0000", rb"\\b"]),
)
BYTES = st.lists(
    st.one_of(ESCAPES, st.binary(max_size=3), st.characters(codec="utf-8").map(str.encode),
        st.sampled_from(ODD).map(lambda odd: odd.encode("utf-8", "surrogatepass")),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@settings(max_examples=2_000, print_blob=True)
@given(BYTES)
@example(b"\x7f")
@example(rb"\uD800")
@example(b"\xe2\x80\xae")
def test_the_quick_look_clears_nothing_that_the_slow_one_refuses(inside: bytes) -> None:
    body = b'{"a":"%b"}' % inside
    try:
        found = json.loads(body.decode())
    except ValueError:
        return  # no JSON: no reader takes it
    if any(isinstance(one, str) and not all(map(may_stand_in_text, one)) for one in leaves(found)):
        assert may_spell_one(body)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_body_is_taken_or_refused_as_the_slow_reader_does(kind: type[msgspec.Struct]) -> None:
    read: BodyReader[Any] = reader_of(kind)
    outcomes: dict[str | None, int] = {}

    @settings(max_examples=60, print_blob=True)
    @given(objects(kind), st.randoms(use_true_random=False), st.integers(0, 2))
    def agree(value: Any, random: Random, odd: int) -> None:
        """Right, or with something odd in it."""
        chosen = with_one_odd_thing(value, random) if odd else value
        data = spelled(chosen, random).encode("utf-8", "surrogatepass")
        note(data.decode("utf-8", "replace"))
        slowly = refused_slowly(kind, data)
        outcomes[slowly] = outcomes.get(slowly, 0) + 1

        assert refused(lambda data: read(data, holds_secret), data) == slowly
        assert refused(lambda data: read(data, holds_secret), data[:-1]) == "malformed_body"

    agree()

    assert {None, "invalid_request"} <= outcomes.keys(), outcomes


@pytest.mark.parametrize("items,batch", BATCHES, ids=lambda kind: kind.__name__)
def test_each_item_of_a_batch_is_read_as_it_is_alone(
    items: type[msgspec.Struct], batch: type[msgspec.Struct]
) -> None:
    alone, together = reader_of(items), BatchReader(items, batch)

    @settings(max_examples=100, print_blob=True)
    @given(st.lists(st.tuples(objects(items), st.booleans()), max_size=4), st.randoms(use_true_random=False))
    def agree(values: list[tuple[Any, bool]], random: Random) -> None:
        chosen = [with_one_odd_thing(one, random) if odd else one for one, odd in values]
        said = [spelled(one, random).encode("utf-8", "surrogatepass") for one in chosen]

        read = together(b'{"items":[%b]}' % b",".join(said), holds_secret)

        assert [_outcome(one) for one in read] == [_outcome(_alone(alone, one)) for one in said]

    agree()


def _alone(read: BodyReader[Any], data: bytes) -> Any:
    try:
        return read(data, holds_secret)
    except ProblemError as error:
        return error


def _outcome(read: Any) -> Any:
    return (read.code, read.detail) if isinstance(read, ProblemError) else msgspec.json.encode(read)
