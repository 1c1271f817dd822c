"""The ledger's side of the fence: which edges it waits for, what is granted, and when it holds."""

from __future__ import annotations

import asyncio

import pytest

from keyledger_edge import UNKNOWN
from keyledger_language import (
    Change,
    EdgeIdentity,
    Grant,
    LeaseRequest,
    next_chain,
    open_grant,
    prove_identity,
    read_changes,
    seal_request,
)
from services.ledger.fence import FenceKeeper
from services.ledger.fence_results import FenceReceipt
from services.ledger.lease_table import EdgeBounds, IncarnationTakenError, TooManyEdgesError
from services.ledger.lease_terms import LeaseTerms
from services.ledger.owned_facts import OwnedFacts

MS = 1_000_000
MASTER_KEY = b"m" * 32
TERMS = LeaseTerms(lease_ms=1000, drift=0.01, max_serve_stale_ms=500)


class Clock:
    def __init__(self) -> None:
        self.ns = 50_000 * MS

    def boottime_ns(self) -> int:
        return self.ns

    def now(self) -> int:
        return self.ns // 1000


class Ledger:
    """A keeper whose lock is confirmed, and that was made long ago."""

    def __init__(
        self,
        *,
        settled: bool = True,
        head: int = 10,
        clock: Clock | None = None,
        left_open: dict[int, int] | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.dead_root_keys: set[str] = set()
        self.sent: list[bytes] = []
        self.receipts: list[FenceReceipt] = []
        self.keeper = FenceKeeper(
            self.clock,
            terms=TERMS,
            partition=0,
            epoch=1,
            head=head,
            master_key=MASTER_KEY,
            publish=self.sent.append,
            record_receipt=self.receipts.append,
            may_connect=lambda root_key_id: root_key_id not in self.dead_root_keys,
            bounds=EdgeBounds(per_root_key=20, total=50),
        )
        self.keeper.resume(left_open or {})
        if settled:
            self.pass_ms(5_000)
        self.confirm()

    def confirm(self) -> None:
        self.keeper.confirmed(self.clock.ns)

    def pass_ms(self, milliseconds: float) -> None:
        self.clock.ns += int(milliseconds * MS)

    def wait_ms(self, milliseconds: float) -> None:
        """Time passes, and the lock stays confirmed."""
        self.pass_ms(milliseconds)
        self.confirm()
        self.keeper.advance()

    def revoke(self, position: int) -> None:
        self.keeper.committed(position, (Change(position, "key", "key_1", (bytes(32),)),))

    def held(self, position: int) -> bool:
        return self.keeper.fence_of(position).held


class Edge:
    """What an edge sends, and nothing of what it does."""

    def __init__(self, ledger: Ledger, name: str = "edge_1", root_key_id: str = "key_1") -> None:
        self.ledger = ledger
        admitted = ledger.keeper.admit(root_key_id, name, name.encode().ljust(16, b"."))
        self.who, self.key = admitted.who, admitted.key
        self.number = 0
        self.vouched, self.mark, self.chain, self.epoch = 0, 0, bytes(16), -1
        self.stale_ms = 0
        self.version = "v"

    def say(self, number: int, *, key: bytes | None = None, who: EdgeIdentity | None = None) -> Grant | None:
        request = LeaseRequest(
            who or self.who,
            number,
            0,
            self.epoch,
            self.vouched,
            self.mark,
            self.chain,
            0,
            self.stale_ms,
            self.version,
        )
        answered = self.ledger.keeper.handle(seal_request(request, key or self.key))
        return open_grant(answered[1], self.key) if answered is not None else None

    def ask(self) -> Grant:
        self.number += 1
        grant = self.say(self.number)
        assert grant is not None
        self.vouched, self.mark, self.chain, self.epoch = grant.head, grant.mark, grant.chain, grant.epoch
        return grant

    def apply(self, message: bytes) -> None:
        self.chain = next_chain(self.chain, message)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_without_edges_a_fence_holds_at_once(ledger: Ledger) -> None:
    ledger.revoke(11)

    assert ledger.held(11)
    assert ledger.receipts == [
        FenceReceipt(
            positions=(11,),
            committed_at=ledger.clock.now(),
            fenced_at=ledger.clock.now(),
            edges_acknowledged=0,
            edges_expired=0,
        )
    ]


def test_what_grants_waits_for_nobody(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.keeper.committed(11, (Change(11, "key", "key_1", (), False),))

    assert ledger.held(11)
    assert len(ledger.sent) == 1


def test_a_fence_holds_when_every_edge_has_acknowledged(ledger: Ledger) -> None:
    edges = [Edge(ledger, f"edge_{n}") for n in range(3)]
    for edge in edges:
        edge.ask()
    ledger.revoke(11)
    for edge in edges:
        assert not ledger.held(11)

        edge.apply(ledger.sent[0])
        edge.say(0)

    result = ledger.keeper.fence_of(11)
    assert (result.held, result.edges, result.acknowledged, result.expired) == (True, 3, 3, 0)


def test_a_fence_holds_when_the_booked_lease_has_ended_and_not_before(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.revoke(11)
    ledger.wait_ms(1_009)

    assert not ledger.held(11)

    ledger.wait_ms(2)

    result = ledger.keeper.fence_of(11)
    assert (result.held, result.acknowledged, result.expired) == (True, 0, 1)


def test_a_stale_bound_is_waited_for(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.stale_ms = 10_000  # more than is allowed
    grant = edge.ask()
    ledger.revoke(11)
    ledger.wait_ms(1_500)

    assert grant.lease_ns == int(1_000 * MS * 0.99) + int(500 * MS * 0.99)
    assert not ledger.held(11)

    ledger.wait_ms(20)

    assert ledger.held(11)


def test_a_grant_after_the_commit_carries_it_and_acknowledges_with_the_next_word(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.revoke(11)
    grant = edge.ask()

    assert [one.position for one in grant.changes] == [11]
    assert (grant.head, grant.confirmed, grant.reset) == (11, True, False)
    assert not ledger.held(11)

    edge.say(0)

    assert ledger.held(11)


def test_an_edge_that_came_after_the_commit_is_not_waited_for(ledger: Ledger) -> None:
    ledger.revoke(11)
    Edge(ledger).ask()

    assert ledger.held(11)


def test_a_chain_that_is_not_ours_proves_nothing(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.revoke(11)
    edge.apply(b"forged")
    edge.say(0)

    assert not ledger.held(11)

    grant = edge.ask()

    assert not grant.confirmed
    assert [one.position for one in grant.changes] == [11]


def test_a_word_without_the_right_seal_counts_for_nothing(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.revoke(11)
    edge.apply(ledger.sent[0])

    assert edge.say(0, key=b"x" * 32) is None
    assert not ledger.held(11)
    assert ledger.keeper.handle(b"nonsense" * 9) is None


def test_a_request_is_granted_once(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()

    assert edge.say(1) is None


def test_a_grant_runs_less_the_age_of_the_lock_and_then_not_at_all(ledger: Ledger) -> None:
    ledger.pass_ms(250)

    assert Edge(ledger).ask().lease_ns == int(1_000 * MS * 0.99) - 250 * MS

    ledger.pass_ms(745)

    assert Edge(ledger, "edge_2").say(1) is None
    assert ledger.keeper.owner_until_ns <= ledger.clock.boottime_ns()


def test_who_is_not_sure_of_the_lock_answers_no_fence(ledger: Ledger) -> None:
    ledger.pass_ms(2_000)
    ledger.revoke(11)

    assert not ledger.held(11)

    ledger.wait_ms(0)

    assert ledger.held(11)


def test_a_new_owner_waits_for_what_the_one_before_granted() -> None:
    ledger = Ledger(settled=False, left_open={9: 0})
    ledger.revoke(11)
    ledger.wait_ms(1_514)

    assert not ledger.held(9)
    assert not ledger.held(11)

    ledger.wait_ms(2)

    assert ledger.held(9)
    assert ledger.held(11)
    assert [one.positions for one in ledger.receipts] == [(9,), (11,)]


def test_an_edge_of_the_owner_before_keeps_its_memory_where_the_changes_are_known() -> None:
    ledger = Ledger()
    changes = [Change(8, "key", "key_1"), Change(9, "plan", "plan_1")]
    ledger.keeper.preload(changes, after=5, marks=[(8, 88), (9, 99)])
    edge = Edge(ledger)
    edge.vouched, edge.mark, edge.epoch, edge.chain = 8, 88, 1, b"another chain..."
    known = edge.ask()
    older = Edge(ledger, "edge_2")
    older.vouched, older.epoch = 4, 1
    forgetful = older.ask()

    assert [one.position for one in known.changes] == [9]
    assert (known.reset, known.confirmed) == (False, False)
    assert forgetful.reset


@pytest.mark.parametrize("vouched, mark", [(8, 87), (8, 0), (9, 88), (7, 88)])
def test_an_edge_with_a_number_of_another_history_starts_empty(vouched: int, mark: int) -> None:
    ledger = Ledger()
    ledger.keeper.preload([Change(8, "key", "key_1")], after=5, marks=[(8, 88), (9, 99)])
    edge = Edge(ledger)
    edge.vouched, edge.mark, edge.epoch, edge.chain = vouched, mark, 1, b"another chain..."

    assert edge.ask().reset


def test_a_grant_carries_the_mark_of_its_head_and_it_is_recognised(ledger: Ledger) -> None:
    ledger.keeper.committed(12, mark=-5)
    edge = Edge(ledger)
    granted = edge.ask()
    ledger.keeper.committed(14, mark=7)
    edge.chain = b"another chain..."  # a forged message broke it

    again = edge.ask()

    assert (granted.head, granted.mark) == (12, -5)
    assert (again.head, again.mark, again.reset) == (14, 7, False)


def test_an_edge_that_is_ahead_of_the_log_is_shown_with_where_it_is(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    edge.vouched = 99
    assert edge.say(2) is None

    assert [one.position for one in ledger.keeper.edges()] == ["0-99"]


def test_an_edge_of_another_epoch_starts_empty(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.vouched, edge.epoch = 10, 0

    assert edge.ask().reset


def test_an_edge_that_knows_more_than_we_do_gets_nothing(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.vouched, edge.epoch = 99, 1

    assert edge.say(1) is None


def test_change_messages_form_a_chain(ledger: Ledger) -> None:
    ledger.revoke(11)
    ledger.keeper.committed(20)
    ledger.revoke(21)
    first, second = (read_changes(one) for one in ledger.sent)

    assert first is not None
    assert second is not None
    assert (first.prev, first.position) == (10, 11)
    assert (second.prev, second.position) == (11, 21)
    assert ledger.keeper.head == 21


async def test_one_waits_for_the_fence_and_is_told_how_it_went(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.revoke(11)
    waiting = asyncio.create_task(ledger.keeper.fence(11))
    await asyncio.sleep(0)
    ledger.pass_ms(7)
    edge.apply(ledger.sent[0])
    edge.say(0)
    result = await waiting

    assert (result.position, result.held, result.waited_ms) == ("0-11", True, 7.0)


async def test_who_loses_the_partition_says_that_it_does_not_know(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.revoke(11)
    waiting = asyncio.create_task(ledger.keeper.fence(11))
    await asyncio.sleep(0)
    ledger.keeper.lost()

    assert not (await waiting).held


def test_all_changes_of_one_commit_share_a_fence(ledger: Ledger) -> None:
    Edge(ledger).ask()
    changes = [Change(position, "key", f"key_{position}") for position in (11, 12, 14)]
    ledger.keeper.committed(15, changes)

    assert ledger.keeper.open_fences == 1
    assert not any(ledger.held(one) for one in (11, 12, 14))
    assert not ledger.held(13), "what was taken away up to there is not fenced"


async def test_who_has_lost_the_partition_does_not_wait(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.revoke(11)
    ledger.keeper.lost()

    assert not (await asyncio.wait_for(ledger.keeper.fence(11), 1)).held


def test_nothing_is_held_up_to_an_open_fence_and_all_before_it_is(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.revoke(11)
    ledger.keeper.committed(100)

    assert [ledger.held(position) for position in (1, 10, 11, 12, 100)] == [True, True, False, False, False]

    ledger.wait_ms(1_011)

    assert [ledger.held(position) for position in (11, 12, 100)] == [True, True, True]


def test_a_position_that_is_not_known_is_not_held(ledger: Ledger) -> None:
    assert ledger.held(10)
    assert not ledger.held(11)


def test_until_it_was_told_what_was_left_open_nothing_is_held() -> None:
    clock = Clock()
    keeper = FenceKeeper(
        clock, terms=TERMS, partition=0, epoch=1, head=10, master_key=MASTER_KEY,
        publish=lambda _: None, record_receipt=lambda _: None, may_connect=lambda _: True,
    )  # fmt: skip
    keeper.confirmed(clock.ns)

    assert not keeper.fence_of(5).held

    keeper.resume({})

    assert not keeper.fence_of(5).held, "whoever believes the owner before may believe anything"
    assert keeper.newest_open() == 10

    clock.ns += 2_000 * MS
    keeper.confirmed(clock.ns)

    assert keeper.newest_open() is None
    assert keeper.fence_of(5).held


def test_what_was_left_open_is_open_once_nobody_believes_the_owner_before() -> None:
    ledger = Ledger(left_open={8: 0})

    assert [ledger.held(position) for position in (7, 8, 10)] == [True, False, False]

    ledger.keeper.advance()

    assert [one.positions for one in ledger.receipts] == [(8,)]
    assert ledger.held(10)


async def test_who_waits_for_the_newest_open_fence_waits_for_all(ledger: Ledger) -> None:
    first, second = Edge(ledger, "edge_1"), Edge(ledger, "edge_2")
    first.ask()
    ledger.revoke(11)
    second.ask()
    ledger.revoke(12)
    newest = ledger.keeper.newest_open()
    assert newest == 12
    waiting = asyncio.create_task(ledger.keeper.fence(newest))
    second.apply(ledger.sent[1])
    second.say(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    ledger.wait_ms(1_011)

    assert (await waiting).held
    assert ledger.keeper.newest_open() is None


def test_of_some_subjects_the_newest_fence_that_may_touch_them_is_found() -> None:
    ledger = Ledger(settled=False, left_open={9: 0})
    ledger.keeper.committed(11, (Change(11, "key", "key_1"),))
    ledger.keeper.committed(12, (Change(12, "plan", "plan_1"),))

    assert ledger.keeper.newest_open() == 12
    assert ledger.keeper.newest_open({"key_1"}) == 11
    assert ledger.keeper.newest_open({"key_2"}) == 9, "what was left open may be about anything"


def test_a_fence_that_is_forgotten_is_held(ledger: Ledger) -> None:
    for position in range(11, 11 + 10_001):
        ledger.revoke(position)
    result = ledger.keeper.fence_of(11)

    assert (result.held, result.edges, result.waited_ms) == (True, 0, 0.0)


def test_who_is_connected_can_be_seen(ledger: Ledger) -> None:
    Edge(ledger).ask()
    ledger.pass_ms(100)
    [view] = ledger.keeper.edges()

    assert (view.edge_id, view.lease_left_ms, view.last_heard_ms) == ("edge_1", 910, 100)


def stranger(edge: Edge, root_key_id: str = "key_2", at: Ledger | None = None) -> Edge:
    """An attacker with another root key that overheard the edge's ids."""
    other = Edge.__new__(Edge)
    other.ledger = at or edge.ledger
    admitted = other.ledger.keeper.admit(root_key_id, edge.who.edge_id, edge.who.incarnation)
    other.who, other.key = admitted.who, admitted.key
    other.number, other.stale_ms, other.version = 0, 0, "v"
    other.vouched, other.mark, other.chain, other.epoch = 0, 0, bytes(16), -1
    return other


def test_an_incarnation_connects_once(ledger: Ledger) -> None:
    edge = Edge(ledger)

    with pytest.raises(IncarnationTakenError):
        stranger(edge)
    with pytest.raises(IncarnationTakenError):
        stranger(edge, "key_1")


def test_the_incarnation_itself_may_ask_again_and_nobody_else(ledger: Ledger) -> None:
    edge = Edge(ledger)
    again = ledger.keeper.readmit(edge.who, prove_identity(edge.who, edge.key))

    assert (again.who, again.key) == (edge.who, edge.key)
    with pytest.raises(IncarnationTakenError):
        ledger.keeper.readmit(edge.who, prove_identity(edge.who, b"x" * 32))


def test_a_stranger_with_overheard_ids_acknowledges_for_nobody_else() -> None:
    before = Ledger()
    edge = Edge(before)
    edge.ask()
    ledger = Ledger(clock=before.clock)  # a fail-over: the new owner does not know yet which edges take part
    other = stranger(edge, at=ledger)
    edge.ledger = ledger
    edge.ask()
    ledger.revoke(11)
    other.ask()
    other.apply(ledger.sent[0])
    other.say(0)

    assert other.key != edge.key
    assert other.say(0, who=edge.who) is None
    assert not ledger.held(11)

    edge.say(0)
    assert not ledger.held(11)

    edge.apply(ledger.sent[0])
    edge.say(0)

    assert ledger.held(11)


def test_what_it_was_vouched_for_counts_only_where_this_owner_granted_just_that(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.revoke(11)
    edge.vouched, edge.chain = 11, b"never heard of.."
    edge.say(0)

    assert not ledger.held(11)

    edge.ask()
    edge.say(0)

    assert ledger.held(11)


def test_a_number_that_jumps_is_not_taken_and_ends_nothing(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()

    assert edge.say(1 << 62) is None
    assert edge.ask().number == 2

    after = Ledger(clock=ledger.clock)
    edge.ledger = after

    assert edge.say(1 << 62) is None
    assert edge.ask().number == 3


def test_numbers_go_on_after_a_long_silence(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    edge.number = 14_000  # it pinged for an hour, and no ping arrived
    ledger.pass_ms(3_600_000)
    ledger.confirm()

    assert edge.ask().number == 14_001


def test_one_root_key_takes_so_many_edges_and_the_dead_make_room(ledger: Ledger) -> None:
    edges = [Edge(ledger, f"edge_{n}") for n in range(20)]
    edges[0].ask()
    with pytest.raises(TooManyEdgesError):
        Edge(ledger, "edge_20")
    Edge(ledger, "edge_other", "key_2").ask()
    ledger.pass_ms(11_011)
    ledger.confirm()
    Edge(ledger, "edge_20").ask()

    assert len(ledger.keeper.edges()) == 2


def test_all_root_keys_together_take_so_many_edges_and_an_owner_takes_in_no_more() -> None:
    ledger = Ledger()
    edges = [Edge(ledger, f"edge_{n}", f"key_{n % 5}") for n in range(50)]
    with pytest.raises(TooManyEdgesError):
        Edge(ledger, "edge_50", "key_6")
    after = Ledger(clock=ledger.clock)
    for number in range(20):
        Edge(after, f"own_{number}", "key_0")
    edges[0].ledger = edges[1].ledger = after

    assert edges[0].say(1) is None
    assert edges[1].ask().number == 1


def test_edges_that_were_never_granted_anything_make_no_fence_wait(ledger: Ledger) -> None:
    for number in range(20):
        Edge(ledger, f"edge_{number}").say(0)
    ledger.revoke(11)

    assert ledger.held(11)


def test_a_root_key_that_died_ends_its_edges_and_their_words_still_count(ledger: Ledger) -> None:
    edge = Edge(ledger)
    edge.ask()
    ledger.dead_root_keys.add("key_1")
    ledger.revoke(11)

    assert edge.say(2) is None
    assert not ledger.held(11)

    edge.apply(ledger.sent[0])
    edge.say(0)

    assert ledger.held(11)


def test_a_new_owner_takes_in_no_edge_of_a_dead_root_key(ledger: Ledger) -> None:
    edge = Edge(ledger)
    after = Ledger(clock=ledger.clock)
    after.dead_root_keys.add("key_1")
    edge.ledger = after

    assert edge.say(1) is None
    assert after.keeper.edges() == []


@pytest.mark.parametrize(
    "version", ["v" * 65, "1.0\u202e", "\u2066x", "a\nb"], ids=["long", "rlo", "lri", "nl"]
)
def test_a_version_that_is_long_or_not_printable_is_no_request(ledger: Ledger, version: str) -> None:
    edge = Edge(ledger)
    edge.version = version

    assert edge.say(1) is None

    edge.version = "v" * 64

    assert edge.say(1) is not None


def test_owned_facts_stop_when_the_lock_is_in_doubt(ledger: Ledger) -> None:
    facts = OwnedFacts(ledger.keeper, lambda _digest: None, ledger.clock)

    assert facts.facts_of(bytes(32)) is None

    ledger.pass_ms(1_000)

    assert facts.facts_of(bytes(32)) is UNKNOWN


def test_those_are_listened_to_who_have_edges_and_whose_root_key_works(ledger: Ledger) -> None:
    assert ledger.keeper.speakers() == {}

    for name, root_key_id in (("edge_1", "key_1"), ("edge_2", "key_1"), ("edge_3", "key_2")):
        Edge(ledger, name, root_key_id)

    assert ledger.keeper.speakers() == {"key_1": 2, "key_2": 1}

    ledger.dead_root_keys.add("key_2")

    assert ledger.keeper.speakers() == {"key_1": 2}

    ledger.wait_ms(601_000)

    assert ledger.keeper.speakers() == {}


def test_a_new_owner_listens_for_a_while_to_those_that_may_have_had_edges() -> None:
    clock = Clock()
    newcomers: list[None] = []
    keeper = FenceKeeper(
        clock, terms=TERMS, partition=0, epoch=1, head=10, master_key=MASTER_KEY,
        publish=lambda _: None, record_receipt=lambda _: None, may_connect=lambda key: key != "key_2",
        expects=("key_1", "key_2"), on_newcomer=lambda: newcomers.append(None),
    )  # fmt: skip

    assert keeper.speakers() == {"key_1": 100}

    edge = keeper.admit("key_1", "edge_1", bytes(16))
    keeper.readmit(edge.who, prove_identity(edge.who, edge.key))
    keeper.admit("key_3", "edge_2", b"2" * 16)

    assert len(newcomers) == 3
    assert keeper.speakers() == {"key_1": 101, "key_3": 1}

    clock.ns += 60_000 * MS

    assert keeper.speakers() == {"key_1": 1, "key_3": 1}
