"""Whatever the items of a batch are, each is answered on its own: a bad one spoils nothing but itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyledger_language import STATUS_OF_CODE
from services.api.answering.problems import TABLE
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ports import Terms
from tests.api.quick.world import Owned, World

ALONE = ("/v1/verify", "/v1/charges", "/v1/reservations", "/v1/explain", "/v1/charges/chg_1/refund",
         "/v1/reservations/rsv_1/capture", "/v1/reservations/rsv_1/release", "/v1/self/revoke")  # fmt: skip
PATHS = ("/v1/verify/batch", "/v1/charges/batch")
GOOD = r'{"secret": "%s", "keyspace_id": "%s"%s}'
CHARGE = r', "request_id": "caf\u00e9 %d", "amount_micros": 1'
MOST_EXAMPLES = 120


class Shop(NamedTuple):
    """A world, a key in it, and how it is asked."""

    world: World
    owned: Owned
    run: Callable[[Any], Any]

    def good(self, path: str, number: int) -> str:
        """An item that is granted, with an escape in it that is as good as any character."""
        more = CHARGE % number if path == PATHS[1] else r', "model": "caf\u00e9"'
        return GOOD % (self.owned.secret, self.owned.key.keyspace_id, more)


@asynccontextmanager
async def opened() -> AsyncGenerator[World]:
    # Between two examples nothing runs that could confirm the ownership.
    world = World(terms=Terms(lease=LeaseTerms(lease_ms=60_000)))
    await world.start()
    world.root = await world.ledger.bootstrap() or ""
    try:
        yield world
    finally:
        await world.stop()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with asyncio.Runner() as runner:
        opening = opened()
        world = runner.run(opening.__aenter__())
        keyspace = runner.run(world.make_keyspace())
        acme = runner.run(world.make_organization(credit=10**9))
        owned = runner.run(world.make_key(keyspace, acme))
        try:
            yield Shop(world, owned, runner.run)
        finally:
            runner.run(opening.__aexit__(None, None, None))


# -- items as text: a client may write what no library of ours would


def listed(some: list[str]) -> str:
    return f"[{','.join(some)}]"


ODD_TEXTS = st.sampled_from(
    [
        '""', r'"\u00e9"', r'"\u0000"', r'"\u001f"', r'"\u007f"', r'"\ud83d\ude00"', r'"\ud800"',
        r'"\udc00x"', r'"\"\\\/\b\f\n\r\t"', '"é"', '"' + "x" * 300 + '"', '"ks_x"', '"key_x"',
    ]
)  # fmt: skip
ODD_NUMBERS = st.sampled_from(
    ["0", "-0", "-1", "1.5", "1e2", "1e400", "-1e400", "9223372036854775807", "9223372036854775808",
     "18446744073709551616", "9" * 40, "9" * 5_000, "1e-400"]
)  # fmt: skip
DEEP = st.sampled_from([1, 31, 32, 33, 200, 600]).flatmap(
    lambda depth: st.sampled_from(
        [("[", "]"), ('{"a":', "}"), (r'{"caf\u00e9":', "}"), (r'[{"\u0007":', "}]")]
    ).map(lambda pair: pair[0] * depth + "1" + pair[1] * depth)
)
SIMPLE = st.one_of(ODD_TEXTS, ODD_NUMBERS, st.sampled_from(["null", "true", "false", "[]", "{}"]))
ANY = st.one_of(SIMPLE, DEEP, st.lists(SIMPLE, max_size=3).map(listed))
NAMES = st.sampled_from(
    ["secret", "key_id", "keyspace_id", "request_id", "amount_micros", "cost_micros", "reserve_micros",
     "model", "provider", "project_id", "tenant", "metadata", "permissions", "ip", "colour", r"caf\u00e9",
     r"\u0000", r"\ud800"]
)  # fmt: skip
FIELDS = st.one_of(
    st.tuples(NAMES, ANY),
    st.tuples(st.just("metadata"), st.one_of(DEEP, ODD_NUMBERS.map(lambda n: f'{{"n": {n}}}'))),
    st.tuples(st.just("tenant"), ANY.map(lambda one: f'{{"org_id": {one}}}')),
    st.tuples(
        st.just("permissions"), st.lists(ODD_TEXTS, max_size=3).map(lambda some: f"[{','.join(some)}]")
    ),
)


class Bad(NamedTuple):
    """An item of its own making; `after` a good item's fields, which it may repeat."""

    fields: list[tuple[str, str]]
    after: bool
    other: str | None

    def text(self, good: str) -> str:
        if self.other is not None:
            return self.other
        said = ",".join(f'"{name}": {value}' for name, value in self.fields)
        if not self.after:
            return f"{{{said}}}"
        return f"{good[:-1]}{',' if said else ''}{said}}}"


BAD = st.builds(Bad, st.lists(FIELDS, max_size=4), st.booleans(), st.one_of(st.none(), st.none(), ANY))
ITEMS = st.lists(st.one_of(st.none(), BAD), min_size=1, max_size=6)
NUMBERS = iter(range(10**9))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=MOST_EXAMPLES, deadline=None)
@given(items=ITEMS)
@example(items=[None, Bad([], after=False, other="5")])
@example(items=[None, Bad([("metadata", '{"a":' * 600 + "1" + "}" * 600)], after=True, other=None)])
@example(items=[None, Bad([("model", r'"\ud800"')], after=True, other=None)])
@example(items=[None, Bad([("amount_micros", "9" * 5_000)], after=True, other=None)])
def test_each_item_of_a_batch_is_answered_on_its_own(shop: Shop, path: str, items: list[Bad | None]) -> None:
    good = [shop.good(path, next(NUMBERS)) for _ in items]
    said = [mine if item is None else item.text(mine) for item, mine in zip(items, good, strict=True)]
    body = f'{{"items": [{", ".join(said)}]}}'.encode()

    reply = shop.run(shop.world.post(path, body))

    assert reply.status in {200, 201}, (reply.body, body)

    results = reply.json["results"]
    for item, result, text in zip(items, results, said, strict=True):
        granted = result.get("valid", "charge" in result)
        if item is None:
            assert granted, (result, text)
        elif not granted:
            assert result["code"] in (TABLE.keys() | STATUS_OF_CODE.keys()), result
            assert result.get("status", 200) < 500, (result, text)


@pytest.mark.parametrize("path", ALONE)
@settings(max_examples=40, deadline=None)
@given(item=BAD, at_once=st.booleans())
@example(item=Bad([("metadata", '{"a":' * 971 + "1" + "}" * 971)], after=True, other=None), at_once=True)
@example(item=Bad([("as_of", r'{"\u0007":' * 900 + "1" + "}" * 900)], after=False, other=None), at_once=False)
@example(item=Bad([], after=False, other=r'[{"\ud800":' * 500), at_once=False)
def test_a_bad_body_alone_is_the_callers_fault(shop: Shop, path: str, item: Bad, *, at_once: bool) -> None:
    good = shop.good(PATHS[0] if path == "/v1/verify" else PATHS[1], next(NUMBERS))
    shop.world.at_once = at_once

    reply = shop.run(shop.world.post(path, item.text(good).encode()))

    assert reply.status < 500, (reply.body, item)
