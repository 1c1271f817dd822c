"""Is a thing described twice in the API description? Looked for by its fields, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

_ALIKE: Final = 0.75
"""Two shapes of a quota once had 7 of 9 fields in common, two of a wallet 7 of 8; an organization and a
project, which are two things, have 7 of 10."""
_REF: Final = "#/components/schemas/"


class Thing(NamedTuple):
    """Something that is shown, and what it is described by."""

    component: str
    known_by: frozenset[str]
    """Fields that nothing else has together."""


THINGS: Final[Mapping[str, Thing]] = {
    "key": Thing("KeyView", frozenset({"hint", "created_by", "secrets"})),
    "organization": Thing("OrganizationView", frozenset({"external_id", "status"})),
    "project": Thing("ProjectView", frozenset({"organization_id", "quotas", "status"})),
    "plan": Thing("PlanView", frozenset({"name", "models", "price_multiplier"})),
    "keyspace": Thing("ShownKeyspace", frozenset({"prefix", "secret_format", "builtin"})),
    "wallet": Thing("WalletView", frozenset({"balance_micros", "credit_limit_micros"})),
    "quota": Thing("QuotaView", frozenset({"window", "spent", "remaining"})),
    "charge": Thing("ChargeView", frozenset({"base_micros", "charged_at"})),
    "refund": Thing("RefundView", frozenset({"refunded_micros", "refunded_at"})),
    "reservation": Thing("ReservationView", frozenset({"held_micros", "reserved_at"})),
    "refusal": Thing("RefusalView", frozenset({"level", "remaining", "resets_at"})),
}
EXTENDED_BY: Final = frozenset({"fence"})
"""What an answer to a change may add to the thing that was changed."""
EXCUSED: Final[Mapping[tuple[str, str], str]] = {
    ("KeyView", "ProjectView"): "a key belongs to an organization and has quotas, as a project does",
    ("KeyView", "OwnKeyView"): "the one is the other and what its holder is not told",
    ("OwnKeyView", "ProjectView"): "as a key and a project are",
    ("AskedQuotaView", "QuotaView"): "an explanation says what a use asks of a quota, and whether that fits",
    ("FiguresView", "WalletView"): "an explanation has a rule's figures, whichever these are",
    ("QuotaView", "RefusalView"): "a refusal names the limit that said no: of a quota, or of a wallet",
}
OF_ANOTHER_KIND: Final = frozenset({
    ("SelfView", "wallet"), ("SelfView", "key"), ("RevokedSelfView", "key"), ("FiguresView", "quotas"),
})  # fmt: skip
"""An ordinary key is told less of itself and of the wallet than a root key is; an explanation tells more."""


def shown(document: Mapping[str, Any]) -> Iterator[str]:
    """The components that answers are made of."""
    components = document["components"]["schemas"]
    answers = [operation["responses"] for path in document["paths"].values() for operation in path.values()]
    waiting, seen = list(_named_in(answers)), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _named_in(components[name])
            yield name


def _named_in(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith(_REF):
            yield reference.removeprefix(_REF)
        for inner in schema.values():
            yield from _named_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _named_in(inner)


def described_twice(document: Mapping[str, Any]) -> list[str]:
    """Things that have two descriptions, in a sentence each."""
    components = document["components"]["schemas"]
    fields = {name: frozenset(components[name].get("properties", ())) for name in sorted(shown(document))}
    single = {name: had for name, had in fields.items() if not _holds_things(had)}
    return [*_with_the_same_signs(single), *_alike(single), *_of_another_kind(components, fields)]


def _holds_things(fields: frozenset[str]) -> bool:
    """Is it an answer around things, or a page of them? Those are alike, and no things themselves."""
    return bool(fields & {"items", "results", *THINGS})


def _with_the_same_signs(single: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for what, thing in THINGS.items():
        for name, had in single.items():
            pair = thing.component, name
            if thing.known_by <= had and not _same(single, *pair) and not _is_excused(*pair):
                yield f"{name} describes a {what}, which {thing.component} does"


def _alike(single: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for one, other in combinations(single, 2):
        common, all_of_them = single[one] & single[other], single[one] | single[other]
        if len(all_of_them) < 3 or _same(single, one, other) or _is_excused(one, other):
            continue
        if len(common) >= _ALIKE * len(all_of_them):
            yield f"{one} and {other} have {len(common)} of {len(all_of_them)} fields in common"


def _of_another_kind(components: Mapping[str, Any], fields: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """A field that is called as a thing is, and described by something else."""
    for name, had in fields.items():
        for what in had & {*THINGS, "quotas"}:
            thing = THINGS[what.removesuffix("s")]
            for kind in _named_in(components[name]["properties"][what]):
                if not _same(fields, thing.component, kind) and (name, what) not in OF_ANOTHER_KIND:
                    yield f"{name}.{what} is a {kind}, not a {thing.component}"


def _same(fields: Mapping[str, frozenset[str]], one: str, other: str) -> bool:
    return one == other or fields[one] ^ fields[other] == EXTENDED_BY


def _is_excused(one: str, other: str) -> bool:
    first, second = sorted(name.removeprefix("Changed") for name in (one, other))
    return (first, second) in EXCUSED
