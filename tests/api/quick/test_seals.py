"""What one process passes on to another is carried out as it was asked for, once, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from zlib import crc32

import pytest
from aiohttp import ClientSession

from services.api.serving.seals import _UNDER_WAY, _Taken
from tests.api.quick.marks import SENDER, mark
from tests.api.quick.test_forwarding import Beside, beside, owning, served, world_app
from tests.api.quick.world import Owned, Reply, World, call, running_world

Change = Callable[[dict[str, Any]], None]

WAS_FOR, WAS_ID = "x-keyledger-was-x-forwarded-for", "x-keyledger-was-x-request-id"
KEYS = {"idempotency-key": "once", "if-match": '"1"', "x-api-key": "a", WAS_FOR: "10.0.0.1"}


@pytest.fixture(autouse=True)
def sealed(world: World) -> None:
    owning(world)


def asked(world: World, owned: Owned) -> dict[str, Any]:
    """A charge, as another process passes it on."""
    body = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10}
    headers = {"authorization": f"Bearer {world.root}", WAS_ID: "trace-1", **KEYS}
    del headers["idempotency-key"], headers["if-match"]
    return {"method": "POST", "target": "/v1/charges", "headers": headers, "body": body}


async def send(world: World, request: dict[str, Any]) -> Reply:
    return await call(
        world.app, request["method"], request["target"], headers=request["headers"], body=request["body"]
    )


def seal(world: World, request: dict[str, Any], **more: Any) -> None:
    headers = request["headers"]
    made = mark(world, request["target"], request["body"], method=request["method"], headers=headers, **more)
    request["headers"] = {**headers, "x-keyledger-forwarded": made}


def header(name: str, value: str | None) -> Change:
    def change(request: dict[str, Any]) -> None:
        if value is None:
            del request["headers"][name]
        else:
            request["headers"][name] = value

    return change


def swapped(one: str, two: str) -> Change:
    def change(request: dict[str, Any]) -> None:
        headers = request["headers"]
        headers[one], headers[two] = headers[two], headers[one]

    return change


def part(name: str, value: Any) -> Change:
    def change(request: dict[str, Any]) -> None:
        request[name] = value

    return change


def body(**fields: Any) -> Change:
    def change(request: dict[str, Any]) -> None:
        request["body"] = {**request["body"], **fields}

    return change


def cut(request: dict[str, Any]) -> None:
    request["body"] = json.dumps(request["body"]).encode()[:-1]


def moved(request: dict[str, Any]) -> None:
    """The same bytes in a row, divided otherwise."""
    request["headers"]["x-api-key"] = "ax"
    request["headers"][WAS_FOR] = "0.0.0.1"


def from_another(request: dict[str, Any]) -> None:
    made = request["headers"]["x-keyledger-forwarded"]
    request["headers"]["x-keyledger-forwarded"] = made.replace("192.0.2.7", "10.0.0.1")


def as_another_try(request: dict[str, Any]) -> None:
    """With a number that was not used."""
    head, number, names, peer = request["headers"]["x-keyledger-forwarded"].rsplit(";", 3)
    request["headers"]["x-keyledger-forwarded"] = f"{head};{int(number) + 1_000};{names};{peer}"


def less_is_sealed(request: dict[str, Any]) -> None:
    """As if the key had been added on the way, and was to be left out."""
    head, names, peer = request["headers"]["x-keyledger-forwarded"].rsplit(";", 2)
    less = names.replace(f"{crc32(b'x-api-key'):08x}", "")
    assert less != names
    request["headers"]["x-keyledger-forwarded"] = f"{head};{less};{peer}"


def more_is_sealed(request: dict[str, Any]) -> None:
    head, names, peer = request["headers"]["x-keyledger-forwarded"].rsplit(";", 2)
    request["headers"]["if-match"] = '"2"'
    request["headers"]["x-keyledger-forwarded"] = f"{head};{names}{crc32(b'if-match'):08x};{peer}"


def past_a_refusal(request: dict[str, Any]) -> None:
    made = request["headers"]["x-keyledger-forwarded"].split(";")
    request["headers"]["x-keyledger-forwarded"] = ";".join([*made[:4], "7", *made[5:]])


def marked_twice(request: dict[str, Any]) -> None:
    request["headers"] = [*request["headers"].items(), ("x-keyledger-forwarded", "mine")]


CHANGES: dict[str, Change] = {
    "another body": body(amount_micros=11),
    "a cut body": cut,
    "no body": part("body", b""),
    "another path": part("target", "/v1/charges/batch"),
    "a query": part("target", "/v1/charges?fence=false"),
    "another method": part("method", "PUT"),
    "another caller": header("authorization", "Bearer kl_root_another"),
    "no caller": header("authorization", None),
    "another trace id": header(WAS_ID, "trace-2"),
    "no trace id": header(WAS_ID, None),
    "a secret": header("x-api-key", "b"),
    "a proxy's word": header(WAS_FOR, "10.0.0.2"),
    "two values swapped": swapped("x-api-key", WAS_FOR),
    "one header less": less_is_sealed,
    "one header more": more_is_sealed,
    "one part longer, the next one shorter": moved,
    "another client": from_another,
    "another number": as_another_try,
    "another refusal": past_a_refusal,
    "two marks": marked_twice,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_is_changed_on_the_way_is_refused(world: World, owned: Owned, change: Change) -> None:
    good, bad = asked(world, owned), asked(world, owned)
    seal(world, good)
    seal(world, bad)
    change(bad)

    refused = await send(world, bad)
    charged = world.ledger.books.head
    granted = await send(world, good)

    assert (refused.status, refused.code) == (503, "not_owner")
    assert "x-keyledger-not-owner" not in refused.headers
    assert granted.status == 201
    assert world.ledger.books.head == charged + 1


ADDED = {
    # A charge takes neither of the first two: 400, if they counted.
    "idempotency-key": "twice",
    "if-match": '"2"',
    "x-keyledger-position": "0-9999",
    "x-keyledger-proxy-key": "kl_root_another",
    "x-forwarded-for": "10.9.9.9",
    "x-request-id": "of-the-proxy",
    "accept-encoding": "gzip",
    "via": "2.0 proxy",
}


@pytest.mark.parametrize("added", [{one: ADDED[one]} for one in ADDED] + [ADDED], ids=[*ADDED, "all"])
async def test_what_a_proxy_adds_on_the_way_says_nothing(
    world: World, owned: Owned, added: dict[str, str]
) -> None:
    """One that speaks TLS for the owner adds what it likes."""
    request = asked(world, owned)
    seal(world, request)
    request["headers"].update(added)
    reply = await send(world, request)

    assert reply.status == 201
    assert reply.headers["x-request-id"] == "trace-1"


@pytest.mark.parametrize("name", ["idempotency-key", "if-match"])
@pytest.mark.parametrize("value", ["other", None])
async def test_a_write_keeps_its_key_and_its_version(world: World, name: str, value: str | None) -> None:
    request: dict[str, Any] = {
        "method": "POST",
        "target": "/v1/organizations",
        "headers": {"authorization": f"Bearer {world.root}", name: KEYS[name]},
        "body": {"name": "Acme"},
    }
    seal(world, request)
    header(name, value)(request)
    before = world.ledger.books.head
    refused = await send(world, request)

    assert (refused.status, refused.code) == (503, "not_owner")
    assert world.ledger.books.head == before


async def test_headers_may_come_in_another_order_but_not_those_of_one_name(
    world: World, owned: Owned
) -> None:
    good, bad = asked(world, owned), asked(world, owned)
    for one in (good, bad):
        seal(world, one)
        one["headers"] = list(one["headers"].items())
    good["headers"].reverse()
    bad["headers"].insert(0, ("x-api-key", "first"))

    assert (await send(world, bad)).code == "not_owner"
    assert (await send(world, good)).status == 201


async def test_what_is_sent_twice_is_carried_out_once(world: World) -> None:
    """Without a request id or an Idempotency-Key: two organizations, if it were done twice."""
    request: dict[str, Any] = {
        "method": "POST",
        "target": "/v1/organizations",
        "headers": {"authorization": f"Bearer {world.root}"},
        "body": {"name": "Acme"},
    }
    seal(world, request)
    first = await send(world, request)
    made = len(world.ledger.books.organizations)
    again = await send(world, request)

    assert first.status == 201
    # Not `not_owner`: whoever hears this and not the first answer must not take it for not carried out.
    assert (again.status, again.code) == (503, "outcome_unknown")
    assert "x-keyledger-not-owner" not in again.headers
    assert len(world.ledger.books.organizations) == made


def test_numbers_may_come_in_any_order_and_each_of_them_once() -> None:
    taken = _Taken()

    assert [taken.first("one", number, 0) for number in (5, 3, 4, 4, 5)] == [True, True, True, False, False]
    assert taken.first("two", 5, 0)


def test_what_was_overtaken_by_too_many_is_not_known() -> None:
    taken = _Taken()
    taken.first("one", 3 + _UNDER_WAY, 0)

    assert taken.first("one", 4, 0)
    assert not taken.first("one", 3, 0)


def test_a_process_is_forgotten_when_all_that_it_sent_is_too_old() -> None:
    taken = _Taken()
    for sender, now in (("one", 0), ("two", 60)):
        taken.first(sender, 1, now)
    assert set(taken._senders) == {"one", "two"}

    taken.first("three", 1, 61)

    assert set(taken._senders) == {"two", "three"}


@pytest.mark.parametrize(
    "other",
    [
        "2;{at};{seal};{tenure};0;192.0.2.7",
        "3;{at};{seal};a part more;{tenure};0;192.0.2.7",
    ],
    ids=["an earlier version's", "a later version's"],
)
async def test_a_mark_of_another_version_is_no_clients_header(world: World, owned: Owned, other: str) -> None:
    request = asked(world, owned)
    made = other.format(at=1, seal="ab" * 32, tenure=world.ledger.tenure)
    request["headers"]["x-keyledger-forwarded"] = made
    reply = await send(world, request)

    assert (reply.status, reply.code) == (503, "not_owner")


# -- over real connections


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[World, Beside]]:
    async with served(world_app(world)) as address, beside(world, address) as other:
        yield world, other


async def test_every_header_and_byte_that_a_client_may_send_arrives_sealed(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    _, other = pair
    # What may be said in a header at all: nothing, text that is not ASCII and not UTF-8, a name twice.
    headers = [
        ("authorization", f"Bearer {other.root}"), ("x-empty", ""), ("x-text", "caf\u00e9"), ("x-twice", "b"),
        ("x-twice", "a"), ("user-agent", "a client"), ("accept", "*/*"), ("accept-encoding", "gzip"),
        ("content-type", "application/json"), ("cookie", "a=b"), ("host", "keyledger.test"),
        ("connection", "keep-alive"), ("expect", "100-continue"), ("x-request-id", "trace-7"),
        ("content-length", "999"), ("te", "trailers"),
    ]  # fmt: skip
    request = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10, "metadata": {"a": "\u20ac"}}
    for one in (headers, headers[:1]):
        reply = await call(other.app, "POST", "/v1/charges", headers=one, body=request)
        assert reply.status == 201, reply.body
    listed = await call(
        other.app, "GET", f"/v1/keys?organization_id={owned.key.organization_id}&limit=1", headers=headers[:1]
    )
    assert listed.status == 200


async def test_a_client_does_not_say_what_a_proxy_was_told(pair: tuple[World, Beside], owned: Owned) -> None:
    _, other = pair
    headers = {"authorization": f"Bearer {other.root}", "x-request-id": "trace-7", WAS_ID: "another"}
    request = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10}
    reply = await call(other.app, "POST", "/v1/charges", headers=headers, body=request)

    assert (reply.status, reply.headers["x-request-id"]) == (201, "trace-7")


async def test_a_proxy_between_two_processes_rewrites_where_a_client_came_from(
    world: World, owned: Owned
) -> None:
    """What the client asked for is judged, here with a byte that no path has."""
    target = f"/v1/forward-auth?keyspace_id={owned.key.keyspace_id}"
    headers = {
        "authorization": f"Bearer {owned.secret}", "x-keyledger-proxy-key": world.root,
        "x-keyledger-was-x-forwarded-uri": "/v1/models?a=\x00",
    }  # fmt: skip
    request: dict[str, Any] = {"method": "GET", "target": target, "headers": headers, "body": b""}
    seal(world, request)
    request["headers"]["x-forwarded-uri"] = "/v1/models"
    judged = await send(world, request)

    assert (judged.status, judged.code) == (400, "invalid_request")


async def test_a_body_that_comes_in_parts_is_sealed_whole(pair: tuple[World, Beside], owned: Owned) -> None:
    _, other = pair
    request = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10, "metadata": {"a": "x" * 3_000}}
    headers = {"authorization": f"Bearer {other.root}"}
    reply = await call(other.app, "POST", "/v1/charges", headers=headers, body=request, chunks=7)

    assert reply.status == 201


async def test_nobody_on_the_way_between_two_processes_changes_a_charge(world: World, owned: Owned) -> None:
    """Over real connections, byte for byte."""
    sent: list[bytes] = []
    change = True
    async with served(world_app(world)) as address:
        host, _, port = address.removeprefix("http://").rpartition(":")

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(host, int(port))

            async def answers() -> None:
                while data := await there.read(65_536):
                    writer.write(data)
                writer.close()

            answering = asyncio.create_task(answers())
            while data := await reader.read(65_536):
                sent.append(data)
                back.write(data.replace(b'"amount_micros": 10', b'"amount_micros": 99') if change else data)
            back.close()
            await answering

        server = await asyncio.start_server(between, "127.0.0.1", 0)
        way = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with beside(world, way) as other:
            request = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10}
            refused = await other.post("/v1/charges", request)
            change = False
            granted = await other.post("/v1/charges", request)
        server.close()

    assert b'"amount_micros": 10' in b"".join(sent)
    assert (refused.status, refused.code) == (503, "not_owner")
    assert (granted.status, granted.json["charge"]["amount_micros"]) == (201, 10)


async def test_a_broken_seal_is_told_once_and_no_key_or_seal_is_in_a_log(
    pair: tuple[World, Beside], owned: Owned, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, other = pair
    await other.post("/v1/charges", {"key_id": owned.id, "request_id": "r1", "amount_micros": 10})
    request = asked(owner, owned)
    seal(owner, request)
    mine = request["headers"]["x-keyledger-forwarded"]
    request["body"] = b"{}"
    for _ in range(3):
        await send(owner, request)
    told = "".join(capsys.readouterr())

    assert told.count("forwarding.seal_broken") == 1
    assert mine.split(";")[2] not in told
    assert owner.root not in told


async def test_what_processes_tell_each_other_reaches_no_client(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    """Over real HTTP, on each way to a 503."""
    owner, other = pair
    request = {"key_id": owned.id, "request_id": "r1", "amount_micros": 10}
    as_root = {"authorization": f"Bearer {owner.root}"}
    forged = {
        **as_root,
        "x-keyledger-forwarded": f"2;1;{'ab' * 32};{owner.ledger.tenure};0;{SENDER};1;10.0.0.1",
    }

    async def lies(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            internal = [(b"x-keyledger-not-owner", b"1"), (b"x-keyledger-clock", b"7")]
            headers = internal[1:] if scope["path"] == "/v1/self" else internal
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

    async with served(world_app(other)) as address, served(lies) as liar, ClientSession() as client:
        told = []
        for asked_at, headers in ((owner, forged), (other, forged)):
            async with served(world_app(asked_at)) as at:
                told.append(await client.post(f"{at}/v1/charges", headers=headers, json=request))
        other.directory.address = liar
        told += [
            await client.post(f"{address}{path}", headers=as_root, json=request)
            for path in ("/v1/charges", "/v1/self")
        ]

    assert [reply.status for reply in told] == [503] * 4
    internal = {"x-keyledger-not-owner", "x-keyledger-clock", "x-keyledger-refused-lately"}
    assert [internal & {name.lower() for name in reply.headers} for reply in told] == [set()] * 4


async def test_a_process_without_others_beside_it_tells_nothing_of_them() -> None:
    async with running_world() as alone:
        alone.ledger.standing.owner = False
        async with served(alone.app) as address, ClientSession() as client:
            reply = await client.get(f"{address}/v1/self", headers={"x-keyledger-forwarded": "1"})

    assert reply.status == 503
    assert "x-keyledger-not-owner" not in {name.lower() for name in reply.headers}
