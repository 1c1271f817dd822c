"""Fills: an edge asks for only a few secrets at a time, so that the ledger has time for all edges' grants."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from keyledger_edge import FillAnswer, LedgerUnreachableError, RefusedByLedgerError
from keyledger_edge import _ledger_client as client_module
from keyledger_edge._http import HttpClient, HttpReply
from keyledger_edge._ledger_client import LedgerClient
from keyledger_language.messages import VerifyBatchRequest, VerifyRequest


class CountingHttp(HttpClient):
    """Answers when a test says so, and counts how many requests waited at the same time."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", "kl_root_x")
        self.open = asyncio.Event()
        self.under_way = 0
        self.most = 0

    async def post(self, path: str, body: bytes, *, seconds: float) -> HttpReply:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.open.wait()
        self.under_way -= 1
        return HttpReply(
            200,
            msgspec.json.encode(FillAnswer(facts=None, as_of=7, partition=0, epoch=1, utc=5, lineage=b"l")),
        )


async def test_eight_at_once_and_all_in_the_end() -> None:
    http = CountingHttp()
    client = LedgerClient(http)
    asking = [asyncio.create_task(client.fill(bytes([n]) * 32, "ks")) for n in range(30)]
    await asyncio.sleep(0.01)

    assert http.under_way == 8

    http.open.set()
    answers = await asyncio.gather(*asking)

    assert [answer.as_of for answer in answers] == [7] * 30
    assert http.most == 8


async def test_who_waits_too_long_for_a_turn_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FILL_SECONDS", 0.05)
    client = LedgerClient(CountingHttp())
    asking = [asyncio.create_task(client.fill(bytes([n]) * 32, "ks")) for n in range(9)]
    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert [type(answer) for answer in answers] == [LedgerUnreachableError] * 9


class SmallHttp(HttpClient):
    """Accepts bodies of at most a thousand bytes, as a ledger accepts at most a mebibyte."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", "kl_root_x")
        self.refused = 0

    async def post(self, path: str, body: bytes, *, seconds: float) -> HttpReply:  # as it is called
        await asyncio.sleep(0)
        if len(body) > 1_000:
            self.refused += 1
            return HttpReply(413, b'{"status":413,"code":"body_too_large"}')
        valid = {"valid": True, "code": "valid", "position": "0-1"}
        if path.endswith("/batch"):
            items = msgspec.json.decode(body, type=VerifyBatchRequest).items
            return HttpReply(200, msgspec.json.encode({"results": [valid] * len(items)}))
        return HttpReply(200, msgspec.json.encode(valid))


async def test_nobody_is_refused_for_the_size_of_what_others_ask() -> None:
    http = SmallHttp()
    client = LedgerClient(http)
    asked = [
        VerifyRequest(secret="x", cost_micros=1, request_id=f"r{n}", model="m" * (2_000 if n == 9 else 10))
        for n in range(30)
    ]
    told = await asyncio.gather(*(client.verify(one) for one in asked), return_exceptions=True)

    assert http.refused > 1
    assert [n for n, one in enumerate(told) if isinstance(one, RefusedByLedgerError)] == [9]
    assert [one for n, one in enumerate(told) if n != 9 and isinstance(one, BaseException)] == []
