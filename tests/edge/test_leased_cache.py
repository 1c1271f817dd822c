"""The edge's side of the fence, rule by rule."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from keyledger_edge import (
    UNKNOWN,
    Change,
    ChangeMessage,
    EdgeIdentity,
    FillAnswer,
    Grant,
    KeyFacts,
    LeasedCache,
    Membership,
    Scopes,
    next_chain,
    read_request,
    request_is_sealed,
    seal_grant,
    write_changes,
)

MS = 1_000_000
KEY = b"k" * 32
WHO = EdgeIdentity("key_1", "edge_1", b"i" * 16, b"n" * 24)
ME = Membership(who=WHO, key=KEY, longest_lease_ns=1_500 * MS)
SECRET, OTHER = bytes(32), b"\1" * 32
CHAIN, LINEAGE, MARK = b"c" * 16, b"lineage1", 77


class Clock:
    def __init__(self) -> None:
        self.ns = 10_000 * MS

    def __call__(self) -> int:
        return self.ns


class Edge:
    """A cache with a ledger that sends what the test wants."""

    def __init__(self, **options: int) -> None:
        self.clock = Clock()
        self.cache = LeasedCache(self.clock, **options)
        self.cache.join(ME)
        self.chain, self.last_message = CHAIN, 0

    def ask(self) -> int:
        data = self.cache.request()
        assert data is not None
        request = read_request(data)
        assert request is not None
        return request.number

    def grant(self, number: int, head: int, *changes: Change, key: bytes = KEY, **other: object) -> bool:
        if changes:
            self.chain, self.last_message = next_chain(self.chain, b"unheard"), changes[-1].position
        fields = {
            "who": ME.who, "number": number, "partition": 0, "epoch": 0, "lineage": LINEAGE,
            "head": head, "mark": MARK, "last_message": self.last_message, "chain": self.chain,
            "confirmed": True, "reset": False, "changes": changes, "lease_ns": 1000 * MS, "utc": 5_000_000,
        }  # fmt: skip
        return self.cache.granted(seal_grant(Grant(**{**fields, **other}), key))  # type: ignore[arg-type]  # a table of fields

    def leased(self, head: int = 10, **other: object) -> Edge:
        assert self.grant(self.ask(), head, **other)  # type: ignore[arg-type]  # a table of fields
        return self

    def fill(
        self,
        as_of: int,
        digest: bytes = SECRET,
        *,
        found: bool = True,
        epoch: int = 0,
        lineage: bytes = LINEAGE,
    ) -> bool:
        facts = facts_at(as_of) if found else None
        return self.cache.filled(
            digest,
            FillAnswer(facts=facts, as_of=as_of, partition=0, epoch=epoch, utc=0, lineage=lineage),
        )

    def hear(
        self, prev: int, position: int, *changes: Change, lineage: bytes = LINEAGE, epoch: int = 0
    ) -> bytes:
        data = write_changes(ChangeMessage(0, epoch, lineage, prev, position, changes))
        self.chain, self.last_message = next_chain(self.chain, data), position
        self.answer = self.cache.changed(data)
        return data

    def knows(self) -> bool:
        return isinstance(self.cache.facts_of(SECRET), KeyFacts)


def facts_at(as_of: int) -> KeyFacts:
    return KeyFacts(
        key_id="key_1", keyspace_id="ks_1", organization_id="org_1", plan_id="plan_1",
        kind="solo", generation=1,
        projects=frozenset({"prj_1"}), scopes=Scopes(), as_of=as_of,
    )  # fmt: skip


def revoked(position: int) -> Change:
    return Change(position, "key", "key_1", (SECRET,))


def test_a_head_that_is_the_same_number_of_another_history_makes_it_forget_everything() -> None:
    edge = Edge().leased(10)
    edge.fill(10)

    assert not edge.grant(edge.ask(), 10, mark=MARK + 1)

    assert not edge.cache.has_lease
    assert edge.cache.counters.resets == 1
    assert edge.leased(10, mark=MARK + 1, reset=True).knows() is False


def test_it_says_which_history_it_was_vouched_for() -> None:
    edge = Edge().leased(10)

    request = read_request(edge.cache.request() or b"")

    assert request is not None
    assert (request.vouched, request.mark) == (10, MARK)


def test_a_fill_of_another_ledger_process_than_the_one_that_grants_is_not_remembered() -> None:
    edge = Edge().leased(10)

    assert not edge.fill(12, lineage=b"lineage2")
    assert edge.fill(12)


def test_what_was_filled_beyond_the_last_grant_goes_when_another_process_grants() -> None:
    """It may be from a log that was restored since, under a position that names another event now."""
    edge = Edge().leased(10)
    other = b"o" * 32
    edge.fill(10)
    edge.fill(14, other)

    edge.leased(11, lineage=b"lineage2", confirmed=False)

    assert edge.knows()
    assert edge.cache.facts_of(other) is UNKNOWN


def test_what_was_filled_and_then_vouched_for_stays_when_another_process_grants() -> None:
    edge = Edge().leased(10)
    edge.fill(14)
    edge.leased(14)

    edge.leased(15, lineage=b"lineage2", confirmed=False)

    assert edge.knows()


def test_without_a_lease_nothing_is_known() -> None:
    edge = Edge()

    assert edge.cache.facts_of(SECRET) is UNKNOWN


def test_a_lease_counts_from_the_sending_of_the_request() -> None:
    edge = Edge()
    number = edge.ask()
    edge.clock.ns += 600 * MS
    edge.grant(number, 10)
    edge.fill(10)
    edge.clock.ns += 399 * MS

    assert edge.knows()

    edge.clock.ns += 1 * MS

    assert not edge.knows()


def test_memory_outlives_a_lapsed_lease() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.clock.ns += 5000 * MS
    edge.leased(20)

    assert edge.knows()


def test_a_grant_brings_its_changes_before_the_lease() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.grant(edge.ask(), 20, revoked(15))

    assert edge.cache.facts_of(SECRET) is UNKNOWN


@pytest.mark.parametrize("other", [{"reset": True}, {"epoch": 1}])
def test_a_reset_or_another_epoch_empties_the_memory(other: dict[str, object]) -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.leased(20, **other)

    assert len(edge.cache) == 0
    assert not edge.fill(15)


@pytest.mark.parametrize(
    "other", [{"key": b"x" * 32}, {"number": 99}, {"who": replace(WHO, nonce=b"o" * 24)}, {"partition": 1}]
)
def test_a_grant_that_is_not_an_answer_to_us_gives_nothing(other: dict[str, object]) -> None:
    edge = Edge()

    assert not edge.grant(**{"number": edge.ask(), "head": 10, **other})  # type: ignore[arg-type]  # a table of fields
    assert not edge.cache.has_lease


def test_a_grant_counts_once_and_in_order() -> None:
    edge = Edge()
    first, second = edge.ask(), edge.ask()

    assert edge.grant(second, 10)
    assert not edge.grant(first, 9)
    assert not edge.grant(second, 10)


@pytest.mark.parametrize(
    "change",
    [
        revoked(11),
        Change(11, "key", "key_1"),
        Change(11, "organization", "org_1"),
        Change(11, "plan", "plan_1"),
        Change(11, "project", "prj_1"),
        Change(11, "keyspace", "ks_1"),
    ],
)
def test_whatever_the_facts_rest_on_takes_them_along(change: Change) -> None:
    edge = Edge().leased()
    edge.fill(10)

    assert edge.knows()

    edge.hear(10, 11, change)

    assert not edge.knows()
    assert not edge.fill(10)
    assert edge.fill(11)
    assert edge.knows()


def test_a_change_of_something_else_takes_nothing() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.hear(10, 11, Change(11, "organization", "org_2"))

    assert edge.knows()


def test_an_acknowledgement_proves_what_was_applied() -> None:
    edge = Edge().leased()
    data = edge.hear(10, 11, revoked(11))

    assert edge.answer is not None
    assert request_is_sealed(edge.answer, KEY)
    said = read_request(edge.answer)
    assert said is not None
    assert (said.number, said.chain) == (0, next_chain(CHAIN, data))


@pytest.mark.parametrize(
    "message",
    [{"prev": 12, "position": 13}, {"lineage": b"lineage2"}, {"epoch": 1}],
    ids=["gap", "lineage", "epoch"],
)
def test_a_hole_is_not_stepped_over_but_asked_about(message: dict[str, object]) -> None:
    edge = Edge().leased()
    edge.clock.ns += 100 * MS
    edge.hear(**{"prev": 10, "position": 13, **message})  # type: ignore[arg-type]  # a table of fields

    assert edge.cache.position == 10
    assert edge.answer is not None
    said = read_request(edge.answer)
    assert said is not None
    assert said.number > 0


def test_holes_do_not_flood_the_ledger() -> None:
    edge = Edge().leased()
    edge.clock.ns += 100 * MS
    edge.hear(12, 13)

    assert edge.answer is not None

    edge.hear(13, 14)

    assert edge.answer is None


def test_a_forged_message_costs_misses_and_never_keeps_an_entry_alive() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.hear(10, 1_000_000, Change(1_000_000, "organization", "org_9"))

    assert edge.knows()  # checked again, and confirmed up to 10 only

    edge.grant(edge.ask(), 20, Change(15, "organization", "org_1"), confirmed=False)

    assert not edge.knows()
    assert edge.cache.position == 20
    assert edge.fill(20)


def test_a_forged_tombstone_does_not_take_a_true_one_along() -> None:
    # Found by the simulation (seed 79): the forged one had replaced the true one.
    edge = Edge().leased()
    edge.grant(edge.ask(), 15, Change(15, "plan", "plan_1"))
    edge.hear(15, 16, Change(1_000, "plan", "plan_1"))
    edge.grant(edge.ask(), 20, confirmed=False, last_message=15)

    assert not edge.fill(14)
    assert edge.fill(20)


def test_absence_is_remembered_until_the_key_is_created() -> None:
    edge = Edge().leased()
    edge.fill(10, found=False)

    assert edge.cache.facts_of(SECRET) is None

    edge.hear(10, 11, Change(11, "key", "key_1", (SECRET,), narrowing=False))

    assert edge.cache.facts_of(SECRET) is UNKNOWN
    assert not edge.fill(10, found=False)


def test_a_fill_of_another_epoch_is_not_believed() -> None:
    assert not Edge().leased().fill(10, epoch=1)


def test_forgotten_tombstones_leave_a_floor() -> None:
    edge = Edge(tombstone_capacity=8).leased()
    for position in range(11, 30):
        edge.hear(position - 1, position, Change(position, "key", f"key_{position}", (OTHER,)))

    assert not edge.fill(15)
    assert edge.fill(29)


def test_memory_is_bounded_and_garbage_cannot_push_good_keys_out() -> None:
    edge = Edge(capacity=2048, negative_capacity=100).leased()
    edge.fill(10)
    for number in range(5000):
        edge.fill(10, number.to_bytes(2, "big") + bytes(30), found=False)

    assert edge.knows()

    for number in range(1, 20_000):
        edge.fill(10, number.to_bytes(4, "little") + bytes(28))

    assert len(edge.cache) <= 2048


def test_time_is_the_ledgers_and_never_goes_back() -> None:
    edge = Edge().leased(utc=5_000_000)
    edge.clock.ns += 100 * MS
    edge.cache.facts_of(SECRET)

    assert edge.cache.at == 5_100_000

    edge.leased(utc=1_000_000)
    edge.cache.facts_of(SECRET)

    assert edge.cache.at == 5_100_000


def test_a_stale_bound_lengthens_the_lease_and_shows() -> None:
    edge = Edge()
    edge.cache.join(replace(ME, serve_stale_ms=500))
    edge.leased(lease_ns=1500 * MS)
    edge.clock.ns += 999 * MS

    assert edge.cache.has_lease
    assert not edge.cache.is_stale

    edge.clock.ns += 2 * MS

    assert edge.cache.has_lease
    assert edge.cache.is_stale


def test_a_new_incarnation_knows_nothing() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.cache.join(replace(ME, who=replace(WHO, incarnation=b"j" * 16)))

    assert edge.cache.facts_of(SECRET) is UNKNOWN
    assert len(edge.cache) == 0


def test_a_grant_runs_no_longer_than_the_terms_that_were_told() -> None:
    edge = Edge().leased(lease_ns=3_600_000 * MS)
    edge.clock.ns += 1_499 * MS

    assert edge.cache.has_lease

    edge.clock.ns += 1 * MS

    assert not edge.cache.has_lease


@pytest.mark.parametrize(
    "other",
    [
        {"head": 9},
        {"head": 30, "last_message": 31},
        {"head": 1 << 50, "chain": b"another chain..."},
        {"head": 30, "last_message": 25},
        {"head": 30, "chain": b"another chain...", "last_message": 25},
    ],
    ids=["back", "chain beyond head", "another chain", "later message", "unexplained"],
)
def test_a_head_that_moves_without_its_chain_makes_the_edge_forget_everything(
    other: dict[str, object],
) -> None:
    edge = Edge().leased()
    edge.fill(10)

    assert not edge.grant(**{"number": edge.ask(), **other})  # type: ignore[arg-type]  # a table of fields
    assert len(edge.cache) == 0
    assert not edge.cache.has_lease
    assert not edge.fill(15)

    edge.leased(40)

    assert edge.fill(40)
    assert edge.knows()


def test_a_change_that_a_grant_kept_silent_about_makes_the_edge_forget_everything() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.leased(1 << 50)  # an attacker with the edge's key claims that nothing will change for long

    assert edge.knows()

    edge.clock.ns += 100 * MS
    edge.hear(10, 11, Change(11, "organization", "org_9"))

    assert not edge.knows()
    assert len(edge.cache) == 0
    assert edge.answer is not None
    said = read_request(edge.answer)
    assert said is not None
    assert (said.number, said.epoch, said.vouched) == (3, -1, 0)


def test_a_change_that_a_grant_overtook_is_no_contradiction() -> None:
    edge = Edge().leased()
    edge.fill(10)
    edge.grant(edge.ask(), 20, Change(15, "organization", "org_9"))
    edge.hear(10, 15, Change(15, "organization", "org_9"))

    assert edge.knows()
    assert edge.cache.position == 20
