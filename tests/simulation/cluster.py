"""A ledger of several processes, its store, its edges, and a network that fails: around the real classes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keyledger_edge import (
    NO_USE,
    Change,
    ChangeMessage,
    EdgeIdentity,
    FillAnswer,
    KeyFacts,
    KeyspaceView,
    LeasedCache,
    LedgerUnreachableError,
    Membership,
    RateLimiter,
    Scopes,
    SecretFormat,
    SecretShape,
    Use,
    Verifier,
    VerifyAnswer,
    VerifyRequest,
    checksum,
    fingerprint,
    read_changes,
    write_changes,
)
from services.ledger.fence import FenceKeeper
from services.ledger.fence_results import FenceReceipt
from services.ledger.lease_table import EdgeBounds
from services.ledger.lease_terms import LeaseTerms
from services.ledger.owned_facts import OwnedFacts
from tests.simulation.attacker import Attacker
from tests.simulation.checker import Checker, Subject
from tests.simulation.world import MS, SECOND, Callback, Machine, World

MASTER_KEY = b"m" * 32
SHAPE = SecretShape(prefix="kl_sim_", format=SecretFormat(length=30, checksum="crc32"))
KEYSPACES = {"ks_1": KeyspaceView(keyspace_id="ks_1", shape=SHAPE)}
SCOPES = Scopes()
GENERATIONS = 4
BOUNDS = EdgeBounds(per_root_key=40, total=60)


@dataclass(frozen=True, slots=True)
class Parts:
    """The real classes, or one of them replaced by a mutant."""

    cache: type[LeasedCache] = LeasedCache
    verifier: type[Verifier] = Verifier
    keeper: type[FenceKeeper] = FenceKeeper
    drift_counted: bool = True
    cached_clock: bool = False
    confirmed_by_a_read: bool = False
    """Rule 16: the owner asks its PostgreSQL whether it holds the lock, and commits nothing."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One generation's secret of one key, and all that a use of it rests on."""

    text: str
    digest: bytes
    key: int
    generation: int
    project_id: str
    organization_id: str
    plan_id: str
    use: Use
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed event."""

    change: Change
    bad: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    appears: bytes | None = None


class Store:
    """The log and the partition's lock, as a PostgreSQL would keep them."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.marks: list[int] = []
        """Of each entry: those of one commit have the same."""
        self.commits = 0
        self.epoch = 1
        self.life = 0
        """Another one after each restore: what was asked before is not answered."""
        self.owner: LedgerMachine | None = None
        self.session = 0
        self.receipts: set[int] = set()

    def mark_at(self, position: int) -> int:
        return self.marks[position - 1] if position else 0

    def restore(self, length: int) -> None:
        """Become the backup that was made when the log had this length."""
        del self.log[length:], self.marks[length:]
        self.receipts = {one for one in self.receipts if one <= length}
        self.owner = None
        self.session += 1
        self.life += 1

    def acquire(self, ledger: LedgerMachine) -> int | None:
        if self.owner is not None and self.owner is not ledger:
            return None
        self.owner = ledger
        self.session += 1
        return self.session

    def free(self, session: int) -> None:
        if self.session == session:
            self.owner = None

    def is_held(self, session: int) -> bool:
        return self.owner is not None and self.session == session


@dataclass(slots=True)
class Link:
    """What gets through between one machine and the rest."""

    up: bool = True
    down: bool = True
    loss: float = 0.0
    usual: int = 3 * MS
    """The longest delay while all is well."""
    slow: bool = False
    in_order: bool = True
    last_up: int = 0
    last_down: int = 0


@dataclass(slots=True)
class View:
    """A ledger process's committed state."""

    head: int = 0
    mark: int = 0
    bad: set[str] = field(default_factory=set)
    absent: set[bytes] = field(default_factory=set)

    def apply(self, entry: Entry, mark: int) -> None:
        self.head, self.mark = entry.change.position, mark
        self.bad.update(entry.bad)
        self.bad.difference_update(entry.good)
        if entry.appears is not None:
            self.absent.discard(entry.appears)


class Cluster:
    """Everything that one seed sets up."""

    def __init__(
        self, world: World, parts: Parts, *, edges: int, ledgers: int, keys: int, drift: float
    ) -> None:
        self.world = world
        self.parts = parts
        counted = drift if parts.drift_counted else 0.0
        stale_ms = world.random.choice((0, 0, 500))
        self.terms = LeaseTerms(lease_ms=1000, ping_ms=250, drift=counted, max_serve_stale_ms=stale_ms)
        self.checker = Checker(bound=int((self.terms.lease_ms + stale_ms) * MS / (1 - drift)))
        self.forges = world.random.random() < 0.3
        self.store = Store()
        self.attacker: Attacker | None = None
        self.bounds = BOUNDS
        self.operations = 0
        self.subjects: dict[str, Subject] = {}
        self.secrets = [secret for key in range(keys) for secret in self._secrets_of(key)]
        self.by_digest = {secret.digest: secret for secret in self.secrets}
        self.first_absent = {one.digest for one in self.secrets if one.generation > 0}
        self.generation = dict.fromkeys(range(keys), 0)
        # A loop may lack what nobody here asks of it (sockets, signals, processes).
        self.ledgers = [LedgerMachine(self, f"ledger{n}", self._rate(drift)) for n in range(ledgers)]  # type: ignore[abstract]
        self.edges = [EdgeMachine(self, f"edge{n}", self._rate(drift)) for n in range(edges)]  # type: ignore[abstract]

    def _rate(self, drift: float) -> float:
        allowed = drift / 1.5
        random = self.world.random
        return 1 + random.choice((-allowed, allowed, -allowed, allowed, random.uniform(-allowed, allowed)))

    def subject(self, name: str) -> Subject:
        return self.subjects.setdefault(name, Subject(name))

    def _secrets_of(self, key: int) -> list[Secret]:
        organization_id, plan_id, project_id = f"org_{key % 3}", f"plan_{key % 2}", f"prj_{key % 5}"
        names = (f"key_{key}", organization_id, plan_id, project_id, "ks_1")
        # Every third key is used without saying what for: plan and project do not matter then.
        plain = key % 3 == 0
        shared = tuple(self.subject(name) for name in names if not (plain and name in (plan_id, project_id)))
        found = []
        for generation in range(GENERATIONS):
            body = f"{key:010d}{generation:020d}"
            text = SHAPE.prefix + body + checksum(body)
            use = NO_USE if plain else Use(model="m", project_id=project_id)
            own = self.subject(f"secret_{key}_{generation}")
            found.append(
                Secret(
                    text,
                    fingerprint(text),
                    key,
                    generation,
                    project_id,
                    organization_id,
                    plan_id,
                    use,
                    (own, *shared),
                )
            )
        return found

    def facts(self, secret: Secret, view: View) -> KeyFacts | None:
        if secret.digest in view.absent:
            return None
        bad = view.bad
        return KeyFacts(
            key_id=f"key_{secret.key}",
            keyspace_id="ks_1",
            organization_id=secret.organization_id,
            plan_id=secret.plan_id,
            kind="solo",
            generation=secret.generation,
            secret_ends_at=0 if f"secret_{secret.key}_{secret.generation}" in bad else None,
            revoked=f"key_{secret.key}" in bad,
            organization_suspended=secret.organization_id in bad,
            plan_models=() if secret.plan_id in bad else ("m",),
            projects=frozenset() if secret.project_id in bad else frozenset({secret.project_id}),
            required_dimensions=("tenant",) if "ks_1" in bad else (),
            scopes=SCOPES,
            as_of=view.head,
        )

    def restore(self, length: int) -> None:
        """The database is stopped, put back to what it was, and started; edges live on.

        What the operator should do at once (a new epoch) is done late: edges must find out by themselves.
        """
        lost = self.store.log[length:]
        self.store.restore(length)
        self.checker.restored(length)
        names = {name for entry in lost for name in (*entry.bad, *entry.good)}
        for name in names:
            subject = self.subject(name)
            was_good = subject.good
            subject.turned_good()
            for entry in self.store.log:
                if name in entry.bad:
                    subject.turned_bad(entry.change.position, self.world.now)
                    self.checker.by_position[entry.change.position] = subject
                elif name in entry.good:
                    subject.turned_good()
            if not was_good and not subject.good:
                subject.bad_known_at = self.world.now
        self.generation = dict.fromkeys(self.generation, 0)
        for entry in self.store.log:
            if entry.appears is not None:
                self.generation[self.by_digest[entry.appears].key] += 1
        for ledger in self.ledgers:
            self.world.after(1, ledger, ledger.lose_database)

    def raise_epoch(self) -> None:
        """What the operator does after a restore."""
        self.store.epoch += 1
        for ledger in self.ledgers:
            self.world.after(1, ledger, ledger.lose_database)

    # -- the network -----------------------------------------------------------------------------

    def send_up(self, edge: EdgeMachine, link: Link, target: Machine, callback: Callback, *args: Any) -> None:
        if not link.up or self.world.random.random() < link.loss:
            return
        when = self.world.now + self.delay(link)
        if link.in_order:
            when = link.last_up = max(when, link.last_up)
        self.world.at(when, target, self._arrive_up, link, callback, args)

    def _arrive_up(self, link: Link, callback: Callback, args: tuple[Any, ...]) -> None:
        if link.up:
            callback(*args)

    def send_down(self, edge: EdgeMachine, link: Link, callback: Callback, *args: Any) -> None:
        if not link.down or self.world.random.random() < link.loss:
            return
        when = self.world.now + self.delay(link)
        if link.in_order:
            when = link.last_down = max(when, link.last_down)
        self.world.at(when, edge, self._arrive_down, link, callback, args)

    def _arrive_down(self, link: Link, callback: Callback, args: tuple[Any, ...]) -> None:
        if link.down:
            callback(*args)

    def delay(self, link: Link) -> int:
        chance = self.world.random.random()
        return int(chance * 4 * SECOND) if link.slow else int(MS / 10 + chance * link.usual)


class LedgerMachine(Machine):
    """One ledger process: owner while it holds the lock, else waiting for it."""

    def __init__(self, cluster: Cluster, name: str, rate: float) -> None:
        super().__init__(cluster.world, name, rate=rate)
        self.cluster = cluster
        self.database_cut = False
        self.deposed = False
        """Is the PostgreSQL that it reaches a primary of old? Commits there wait for a standby for ever."""
        self.keeper: FenceKeeper | None = None
        self.verifier: Verifier | None = None
        self.view = View()
        self.session = 0
        self.timer_for: int | None = None
        self.committing = False
        self.wake_up()

    def wake_up(self) -> None:
        self.world.after(int(self.world.random.random() * 100 * MS), self, self.try_to_own)

    def die(self) -> None:
        super().die()
        self._free_later()
        self._forget()

    def _forget(self) -> None:
        if self.keeper is not None:
            self.keeper.lost()
        self.keeper = self.verifier = None
        self.committing = False
        self.timer_for = None

    def _free_later(self) -> None:
        """The server notices a dead connection at once, or when keepalives fail."""
        delay = int(self.world.random.random() * 1500 * MS)
        self.world.after(delay, None, self.cluster.store.free, self.session)

    def lose_database(self) -> None:
        """Every connection ends; there is a server again soon."""
        if self.keeper is not None:
            self.step_down()

    def cut_database(self) -> None:
        self.database_cut = True
        self._free_later()

    def depose_database(self) -> None:
        """The standby is promoted; the primary of old, which is all that it reaches, does not know."""
        self.deposed = True
        if self.cluster.store.owner is self:
            self.cluster.store.free(self.session)

    # -- the database ---------------------------------------------------------------------------

    def _ask_database(self, action: Callback, *args: Any) -> None:
        if not self.database_cut:
            self.world.after(self._database_delay(), None, self._at_database, self._lives(), action, args)

    def _lives(self) -> tuple[int, int]:
        return self.life, self.cluster.store.life

    def _at_database(self, lives: tuple[int, int], action: Callback, args: tuple[Any, ...]) -> None:
        if lives == self._lives() and not self.database_cut:
            action(*args)

    def _answer(self, callback: Callback, *args: Any) -> None:
        if not self.database_cut:
            self.world.after(self._database_delay(), self, self._answered, self._lives(), callback, args)

    def _answered(self, lives: tuple[int, int], callback: Callback, args: tuple[Any, ...]) -> None:
        if lives == self._lives() and not self.database_cut:
            callback(*args)

    def _database_delay(self) -> int:
        return int(MS / 10 + self.world.random.random() * 2 * MS)

    # -- ownership ------------------------------------------------------------------------------

    def try_to_own(self) -> None:
        if self.keeper is None:
            self._ask_database(self._acquire, self.boottime_ns())
            self.world.after(100 * MS, self, self.try_to_own)

    def _acquire(self, asked_ns: int) -> None:
        if self.deposed:
            return
        store = self.cluster.store
        session = store.acquire(self)
        if session is not None:
            open_fences = [
                one.change.position
                for one in store.log
                if one.change.narrowing and one.change.position not in store.receipts
            ]
            log = list(zip(store.log, store.marks, strict=True))
            self._answer(self._own, asked_ns, session, store.epoch, log, open_fences)

    def _own(
        self,
        asked_ns: int,
        session: int,
        epoch: int,
        log: list[tuple[Entry, int]],
        open_fences: list[int],
    ) -> None:
        if self.keeper is not None:
            return
        cluster = self.cluster
        self.session = session
        self.view = View(absent=set(cluster.first_absent))
        for entry, mark in log:
            self.view.apply(entry, mark)
            cluster.checker.known(entry.change.position, self.world.now)
        self.keeper = cluster.parts.keeper(
            self,
            terms=cluster.terms,
            partition=0,
            epoch=epoch,
            head=self.view.head,
            mark=self.view.mark,
            master_key=MASTER_KEY,
            publish=self._publish,
            record_receipt=self._record_receipt,
            bounds=BOUNDS,
            random_bytes=self.world.random.randbytes,
        )
        if self.world.random.random() < 0.7:
            kept = log[-20:]
            after = log[-21][0].change.position if len(log) > 20 else 0
            marks = [(one.change.position, mark) for one, mark in kept]
            self.keeper.preload([one.change for one, _ in kept], after=after, marks=marks)
        if cluster.attacker is not None:
            cluster.attacker.meet_owner()
        source = OwnedFacts(self.keeper, self._facts_of, self)
        self.verifier = Verifier(source, KEYSPACES, limiter=RateLimiter(self.time))
        self.keeper.confirmed(asked_ns)
        self.keeper.resume(dict.fromkeys(open_fences, 0))
        for position in open_fences[-10:]:
            self._await_fence(position)
        self._arm()
        self.world.after(self._confirm_every(), self, self._confirm, session)

    def _confirm_every(self) -> int:
        return self.cluster.terms.lease_ms * MS // 4

    def _confirm(self, session: int) -> None:
        if self.keeper is None or session != self.session:
            return
        self._ask_database(self._is_held, session, self.boottime_ns())
        self.world.after(self._confirm_every(), self, self._confirm, session)

    def _is_held(self, session: int, asked_ns: int) -> None:
        if self.deposed:
            if self.cluster.parts.confirmed_by_a_read:
                self._answer(self._confirmed, session, asked_ns, True)
            return
        self._answer(self._confirmed, session, asked_ns, self.cluster.store.is_held(session))

    def _confirmed(self, session: int, asked_ns: int, held: bool) -> None:  # noqa: FBT001 - a callback's answer
        if self.keeper is None or session != self.session:
            return
        if held:
            self.keeper.confirmed(asked_ns)
            self._advance()
        else:
            self.step_down()

    def step_down(self) -> None:
        self._forget()
        self.wake_up()

    # -- commits --------------------------------------------------------------------------------

    def commit(self, make: Callable[[int], list[Entry]]) -> None:
        """Group commit: one at a time."""
        if self.keeper is None or self.committing or self.keeper.owner_until_ns <= self.boottime_ns():
            return
        self.committing = True
        self._ask_database(self._append, self.session, self.view.head, self.view.mark, make)
        self.world.after(3 * SECOND, self, self._give_up, self.session, self.view.head)

    def _give_up(self, session: int, head: int) -> None:
        """An unknown outcome: only a new owner can find out."""
        if self.committing and session == self.session and self.view.head == head:
            self.step_down()

    def _append(self, session: int, head: int, mark: int, make: Callable[[int], list[Entry]]) -> None:
        store, cluster = self.cluster.store, self.cluster
        if self.deposed:
            return
        if not store.is_held(session) or len(store.log) != head or store.mark_at(head) != mark:
            return
        entries = make(head)
        now = self.world.now
        store.commits += 1
        group_mark = store.commits
        for entry in entries:
            store.log.append(entry)
            store.marks.append(group_mark)
            position = entry.change.position
            for name in entry.bad:
                subject = cluster.subject(name)
                subject.turned_bad(position, now)
                cluster.checker.by_position[position] = subject
            for name in entry.good:
                cluster.subject(name).turned_good()
        self._answer(self._committed, session, entries, group_mark)

    def _committed(self, session: int, entries: list[Entry], mark: int) -> None:
        if self.keeper is None or session != self.session:
            return
        self.committing = False
        for entry in entries:
            self.view.apply(entry, mark)
            self.cluster.checker.known(entry.change.position, self.world.now)
        self.keeper.committed(self.view.head, [entry.change for entry in entries], mark=mark)
        for entry in entries:
            if entry.change.narrowing:
                self._await_fence(entry.change.position)
        self._arm()

    # -- the fence ------------------------------------------------------------------------------

    def _await_fence(self, position: int) -> None:
        assert self.keeper is not None
        self.create_task(self._fence(self.keeper, position))

    async def _fence(self, keeper: FenceKeeper, position: int) -> None:
        history = self.cluster.store.life
        held = (await keeper.fence(position)).held
        # After a restore this is the position of something else.
        if held and history == self.cluster.store.life:
            self.cluster.checker.fenced(position, self.world.now)

    def take_away_again(self, subject: Subject) -> None:
        """Somebody asks for what was taken away already: nothing is written, yet it waits (rule 13)."""
        keeper = self.keeper
        if keeper is None or keeper.owner_until_ns <= self.boottime_ns():
            return
        if subject.name in self.view.bad:
            newest = keeper.newest_open()
            position = self.view.head if newest is None else newest
            self.create_task(self._taken_away_again(keeper, position, subject.bad_position))
            self._arm()

    async def _taken_away_again(self, keeper: FenceKeeper, position: int, bad_position: int) -> None:
        history = self.cluster.store.life
        held = (await keeper.fence(position)).held
        if held and history == self.cluster.store.life:
            self.cluster.checker.fenced(bad_position, self.world.now)

    def _record_receipt(self, receipt: FenceReceipt) -> None:
        self.cluster.store.receipts.update(receipt.positions)

    def _arm(self) -> None:
        deadline = self.keeper.next_deadline_ns if self.keeper is not None else None
        if deadline is not None and deadline != self.timer_for:
            self.timer_for = deadline
            when = max(self.world.now + MS, self.world_time_of(deadline))
            self.world.at(when, self, self._advance)

    def _advance(self) -> None:
        self.timer_for = None
        if self.keeper is not None:
            self.keeper.advance()
            self._arm()

    def _publish(self, data: bytes) -> None:
        if self.cluster.attacker is not None:
            self.cluster.attacker.overhear_changes(data)
        for edge in self.cluster.edges:
            if self.cluster.forges and self.world.random.random() < 0.3:
                self.cluster.send_down(edge, edge.bus, edge.hear_changes, self._forged(data))
            self.cluster.send_down(edge, edge.bus, edge.hear_changes, data)

    def _forged(self, data: bytes) -> bytes:
        """What somebody on an open bus would say first, so that the truth is not listened to."""
        true = read_changes(data)
        assert true is not None
        random = self.world.random
        return write_changes(
            ChangeMessage(
                true.partition,
                true.epoch + random.choice((0, 0, 0, 1)),
                true.lineage,
                true.prev,
                true.position + random.choice((0, 0, 1, 1_000_000)),
                random.choice(((), (Change(true.position + 1, "plan", "plan_0"),), true.changes)),
            )
        )

    # -- what edges and callers ask -----------------------------------------------------------------

    def hear(self, data: bytes) -> None:
        if self.keeper is None:
            return
        answer = self.keeper.handle(data)
        if answer is not None:
            self._grant(*answer)
        self._arm()

    def _grant(self, whom: str, grant: bytes) -> None:
        """To whoever goes by that subject, whoever it was that asked."""
        root_key_id, _, edge_id = whom.partition(".")
        for edge in self.cluster.edges:
            if (root_key_id, edge_id) == ("key_fleet", edge.name):
                if self.cluster.attacker is not None:
                    self.cluster.attacker.overhear_grant(edge, grant)
                self.cluster.send_down(edge, edge.bus, edge.hear_grant, grant)

    def fill(self, digest: bytes, reply: Callable[[FillAnswer | None], None]) -> None:
        if self.keeper is None or self.keeper.owner_until_ns <= self.boottime_ns():
            reply(None)
            return
        facts = self._facts_of(digest)
        view = self.view
        answer = FillAnswer(
            facts=facts,
            as_of=view.head,
            partition=0,
            epoch=self.keeper.epoch,
            utc=self.now(),
            lineage=self.keeper.lineage,
        )
        reply(answer)

    def _facts_of(self, digest: bytes) -> KeyFacts | None:
        secret = self.cluster.by_digest.get(digest)
        return self.cluster.facts(secret, self.view) if secret is not None else None

    def verify(self, arrived: int, secret: Secret) -> None:
        if self.verifier is None:
            return
        self.cluster.operations += 1
        verdict = self.verifier.verify_cached(secret.text, secret.use)
        if verdict is not None and verdict.code == "valid":
            self.cluster.checker.accepted(self.name, arrived, secret.subjects)


class EdgeMachine(Machine):
    """One edge process: the real cache and verifier, and a loop that pings."""

    def __init__(self, cluster: Cluster, name: str, rate: float) -> None:
        super().__init__(cluster.world, name, rate=rate)
        self.cluster = cluster
        self.bus = Link(in_order=cluster.world.random.random() < 0.6)
        self.http = Link(in_order=False, usual=cluster.world.random.choice((3, 30, 300)) * MS)
        self.start()

    def clock(self) -> int:
        return self.cached_ns if self.cluster.parts.cached_clock else self.boottime_ns()

    def start(self) -> None:
        self.cache = self.cluster.parts.cache(self.clock, capacity=4096, tombstone_capacity=16)
        terms = self.cluster.terms
        stale_ms = self.world.random.choice((0, terms.max_serve_stale_ms))
        randbytes = self.world.random.randbytes
        drawn_at = (1_700_000_000_000_000 + self.world.now // 1000).to_bytes(8, "big")
        who = EdgeIdentity("key_fleet", self.name, randbytes(16), drawn_at + randbytes(16))
        longest = int((terms.lease_ms + stale_ms) * MS * (1 - terms.drift))
        key = self.cluster.parts.keeper.lease_table.derive(MASTER_KEY, who)
        self.member = Membership(who=who, key=key, longest_lease_ns=longest, serve_stale_ms=stale_ms)
        self.cache.join(self.member)
        self.verifier = self.cluster.parts.verifier(
            self.cache, KEYSPACES, limiter=RateLimiter(self.time), ledger=self, memory=self.cache
        )
        self.world.after(MS, self, self.ping)

    def restart(self) -> None:
        self.die()
        self.start()

    def ping(self) -> None:
        self._say(self.cache.request())
        self.world.after(self.cluster.terms.ping_ms * MS, self, self.ping)

    def _say(self, data: bytes | None) -> None:
        if data is not None:
            if self.cluster.attacker is not None:
                self.cluster.attacker.overhear_request(self, data)
            for ledger in self.cluster.ledgers:
                self.cluster.send_up(self, self.bus, ledger, ledger.hear, data)

    def hear_grant(self, data: bytes) -> None:
        self.cache.granted(data)

    def hear_changes(self, data: bytes) -> None:
        self._say(self.cache.changed(data))

    # -- its uses -------------------------------------------------------------------------------

    def use(self, arrived: int, secrets: list[Secret]) -> None:
        """Several uses that arrived at once."""
        cluster = self.cluster
        cluster.operations += len(secrets)
        verify, accepted = self.verifier.verify_cached, cluster.checker.accepted
        for secret in secrets:
            verdict = verify(secret.text, secret.use)
            if verdict is None:
                self.create_task(self._use_slowly(arrived, secret))
            elif verdict.code == "valid":
                accepted(self.name, arrived, secret.subjects)

    async def _use_slowly(self, arrived: int, secret: Secret) -> None:
        try:
            verdict = await self.verifier.verify(secret.text, secret.use)
            if verdict.code == "valid":
                self.cluster.checker.accepted(self.name, arrived, secret.subjects)
        except AssertionError as failure:
            self.world.failure = failure

    # -- the ledger, over HTTP ------------------------------------------------------------------

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        owners = [one for one in self.cluster.ledgers if one.keeper is not None]
        if not owners:
            raise LedgerUnreachableError
        owner = owners[int(self.world.random.random() * len(owners))]
        answer: asyncio.Future[FillAnswer | None] = self.create_future()
        self.cluster.send_up(self, self.http, owner, owner.fill, digest, self._replier(answer))
        self.world.after(int(self.world.random.uniform(1, 5) * SECOND), self, _settle, answer, None)
        found = await answer
        if found is None:
            raise LedgerUnreachableError
        return found

    def _replier(self, answer: asyncio.Future[FillAnswer | None]) -> Callable[[FillAnswer | None], None]:
        life = self.life

        def reply(found: FillAnswer | None) -> None:
            if life == self.life:
                self.cluster.send_down(self, self.http, _settle, answer, found)

        return reply

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        raise NotImplementedError


def _settle(answer: asyncio.Future[FillAnswer | None], found: FillAnswer | None) -> None:
    if not answer.done():
        answer.set_result(found)
