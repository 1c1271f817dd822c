"""Single events, read back from the log."""

from __future__ import annotations

from domain.events import KeyDisabled, KeyRevoked, Private, UsageCharged
from tests.contract.projected_worlds import reading, written_log
from tests.contract.relay_worlds import NOON, charge

ACME = "org_" + "A" * 26
TAGS = [str(kind.__struct_config__.tag) for kind in (UsageCharged, KeyDisabled, KeyRevoked)]


async def test_events_are_read_back_by_place_and_type_with_their_private_fields(database: str) -> None:
    private = KeyRevoked(
        at=NOON, organization_id=ACME, key_id="key_1", private=Private(reason="found in the open")
    )
    async with written_log(database) as log, reading(database) as asked:
        await log.write([charge(1), private, charge(2)])

        assert [one.position for one in await asked.events.between(1, log.head, TAGS[:1])] == [1, 3]
        assert [one.event for one in await asked.events.at([2])] == [private]
