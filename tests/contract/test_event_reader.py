"""Single events, read back from the log: what belongs to others is not even decoded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from infra.postgres.mapper import EventMapper
from keyledger_language.events import KeyDisabled, KeyRevoked, Private, UsageCharged
from tests.contract.projected_worlds import reading, written_log
from tests.contract.relay_worlds import NOON, charge

ACME, OTHER = "org_" + "A" * 26, "org_" + "B" * 26
TAGS = [str(kind.__struct_config__.tag) for kind in (UsageCharged, KeyDisabled, KeyRevoked)]


async def test_only_an_organizations_own_events_are_decoded(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [msgspec.structs.replace(charge(n), organization_id=OTHER) for n in range(5)]
    mentions = KeyDisabled(at=NOON, organization_id=OTHER, key_id=ACME)  # in another field
    private = KeyRevoked(
        at=NOON, organization_id=ACME, key_id="key_1", private=Private(reason="found in the open")
    )
    mine = msgspec.structs.replace(charge(9), organization_id=ACME)
    async with written_log(database) as log, reading(database) as asked:
        await log.write([*theirs, mine, mentions, KeyDisabled(at=NOON, key_id="key_2"), private])
        decoded: list[str] = []
        decode = EventMapper.decode

        def counted(self: Any, recorded: Any) -> object:
            decoded.append(recorded.type)
            return decode(self, recorded)

        monkeypatch.setattr(EventMapper, "decode", counted)

        found = await asked.events.between(1, log.head, TAGS, ACME)
        assert [one.position for one in found] == [6, 9]
        assert found[1].event == private
        assert decoded == [TAGS[0], TAGS[1], TAGS[2]]
        assert await asked.events.between(1, log.head, TAGS[1:2], ACME) == []
        assert len(await asked.events.between(1, log.head, TAGS)) == 9


async def test_events_are_read_back_by_place_and_type_with_their_private_fields(database: str) -> None:
    private = KeyRevoked(
        at=NOON, organization_id=ACME, key_id="key_1", private=Private(reason="found in the open")
    )
    async with written_log(database) as log, reading(database) as asked:
        await log.write([charge(1), private, charge(2)])

        assert [one.position for one in await asked.events.between(1, log.head, TAGS[:1])] == [1, 3]
        assert [one.event for one in await asked.events.at([2])] == [private]
