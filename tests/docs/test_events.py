"""docs/events.md names every event with all of its fields, and its examples run."""

import asyncio
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from infra.memory.log import MemoryLog
from infra.nats.public_stream import JetStreamPublicStream
from keyledger_language.events import Denial, Event, LedgerEvent, Private, UsageDenied
from tests.contract.relay_worlds import GrowingLog, RunningRelay

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
SECTIONS = {
    section.partition("\n")[0]: section
    for part in PAGE.split("\n## ")
    for section in part.split("\n### ")[1:]
}
EVENTS: tuple[type[Event], ...] = get_args(LedgerEvent)
IN_ENVELOPE = {"at", "actor", "organization_id", "private", "fingerprint"}
OF_SIGHTINGS = {"key_id", "last_used_at", "verifications"}
LEVELS = {"key", "project", "organization", "wallet"}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.__name__))
def test_an_event_is_documented_with_each_of_its_fields(event: type[Event]) -> None:
    named = set(re.findall(r"`(\w+)`", SECTIONS[event.__name__]))
    fields = set(event.__struct_fields__) - IN_ENVELOPE
    if event is UsageDenied:
        fields |= set(Denial.__struct_fields__)

    assert fields <= named
    assert named <= fields | set(Private.__struct_fields__) | OF_SIGHTINGS | LEVELS


def test_nothing_is_documented_that_is_no_event() -> None:
    assert set(SECTIONS) == {event.__name__ for event in EVENTS}


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"```python {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(compile(found[1], f"docs/events.md ({name})", "exec"), names)
    return names


async def published(nats_url: str, count: int) -> None:
    log = MemoryLog()
    assert await log.acquire()
    await GrowingLog(log).charge(count)
    relay = RunningRelay(log, lambda: JetStreamPublicStream.open(nats_url, 0))
    await relay.reaches(count)
    await relay.end()


async def test_the_durable_consumer_gets_all_and_goes_on_where_it_was(nats_url: str) -> None:
    await published(nats_url, 250)
    follow, got = example("durable")["follow"], []

    async def handle(event: dict[str, Any]) -> None:
        got.append(event["sequence"])

    await asyncio.wait_for(follow(nats_url, handle, lambda: len(got) >= 100), 20)
    first = len(got)
    await asyncio.wait_for(follow(nats_url, handle, lambda: len(got) >= 250), 20)

    assert first < 250
    assert got == list(range(1, 251))


async def test_the_ordered_consumer_begins_where_it_is_told(nats_url: str) -> None:
    await published(nats_url, 250)
    follow_from, got, place = example("ordered")["follow_from"], [], 0

    async def handle(event: dict[str, Any], stream_sequence: int) -> None:
        nonlocal place
        got.append(event["sequence"])
        place = stream_sequence

    await asyncio.wait_for(follow_from(nats_url, 0, handle, lambda: len(got) >= 100), 20)
    await asyncio.wait_for(follow_from(nats_url, place, handle, lambda: len(got) >= 250), 20)

    assert got == list(range(1, 251))
