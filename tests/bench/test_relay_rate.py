"""How fast the relay publishes what is in PostgreSQL, beside JetStream's own floor."""

import asyncio
import time

import nats
import pytest

from domain.publishing import Message
from infra.nats.public_stream import JetStreamPublicStream
from infra.nats.relay import RelayStatus, run_relay
from infra.postgres.log import PostgresLog
from infra.postgres.wakeups import WakeupListener
from tests.contract.relay_worlds import LOG_ID, GrowingLog, mapper

pytestmark = pytest.mark.bench
EVENTS = 100_000
TARGET = 20_000


async def test_the_relay_keeps_up_with_20_000_events_a_second(ledger_database: str, nats_url: str) -> None:
    log = PostgresLog(ledger_database)
    assert await log.acquire()
    book = GrowingLog(log)
    for _ in range(EVENTS // 1_000):
        await book.charge(1_000)
    stop, status = asyncio.Event(), RelayStatus()
    async with WakeupListener(ledger_database) as wakeups:
        started, cpu = time.perf_counter(), time.process_time()
        relay = asyncio.create_task(
            run_relay(
                log,
                mapper().decode,
                nats_url,
                log_id=LOG_ID,
                partition=0,
                wakeups=wakeups,
                stop=stop,
                status=status,
            )
        )
        while status.position < EVENTS:
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - started
        cpu = time.process_time() - cpu
        delays = []
        for _ in range(200):
            began = time.perf_counter()
            head = await book.charge(1)
            while status.position < head:
                await asyncio.sleep(0)
            delays.append(time.perf_counter() - began)
        stop.set()
        await relay
    await log.close()
    floor = await _floor(nats_url)
    delays.sort()
    rate = EVENTS / seconds
    print(f"\nrelay {rate:,.0f} events/s, {cpu / EVENTS * 1e6:.0f} us of CPU each")
    print(f"floor {floor:,.0f} ready messages/s: {rate / floor:.2f} of it")
    print(f"append to published: p50 {delays[100] * 1e3:.1f} ms, p99 {delays[198] * 1e3:.1f} ms")

    assert rate > TARGET


async def _floor(url: str) -> float:
    """The same number of ready messages, as fast as the connection takes them."""
    connection = await nats.connect(url)
    await connection.jetstream().delete_stream("KEYLEDGER")
    await connection.close()
    stream = await JetStreamPublicStream.open(url, 0)
    messages = [
        Message("keyledger.events._._.KeyRevoked", {"Nats-Msg-Id": f"1.0.{n}"}, b"x" * 700)
        for n in range(1, EVENTS + 1)
    ]
    started = time.perf_counter()
    for behind in range(0, EVENTS, 1_000):
        await stream.send(messages[behind : behind + 1_000], behind=behind)
    await stream.settle()
    seconds = time.perf_counter() - started
    await stream.close()
    return EVENTS / seconds
