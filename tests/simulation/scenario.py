"""One seed: uses and changes at random, faults at random, and a checker that watches."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from keyledger_edge import Change
from tests.simulation.attacker import Attacker
from tests.simulation.checker import Subject, ViolationError
from tests.simulation.cluster import GENERATIONS, Cluster, EdgeMachine, Entry, Parts, Secret
from tests.simulation.world import MS, SECOND, World

BURST: Final = 16
HUNTED: Final = 8
HEALING: Final = 8 * SECOND
_RESTORES: Final = 0.25
_SPLITS: Final = 0.4
_ATTACKED: Final = 0.5
_JUMP_BEFORE_THE_END: Final = 3 * SECOND // 2
_KINDS: Final = (
    "key",
    "key",
    "key",
    "key",
    "organization",
    "plan",
    "project",
    "key",
    "key",
    "key",
    "key",
    "rotate",
    "organization",
    "organization",
    "plan",
    "project",
    "keyspace",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed went through."""

    seed: int
    operations: int
    faults: int
    accepts: int
    stale_accepts: int
    fences: int
    changes: int
    worst_staleness_ms: float
    worst_fence_ms: float
    bound_ms: float
    attacks: int


class Scenario:
    """Sets up a cluster and lets things happen to it."""

    def __init__(
        self, seed: int, parts: Parts, *, duration: int = 10 * SECOND, operations: int = 5_000
    ) -> None:
        self.seed = seed
        self.world = World(seed)
        random = self.world.random
        self.random = random
        self.cluster = Cluster(
            self.world,
            parts,
            edges=random.randint(1, 4),
            ledgers=random.randint(1, 2),
            keys=random.randint(8, 16),
            drift=random.choice((0.01, 0.05, 0.12)),
        )
        self.duration = duration
        self.faults = 0
        self.restored = False
        enemy = Random(f"attacker {seed}")
        if enemy.random() < _ATTACKED:
            self.cluster.attacker = Attacker(self.cluster, enemy)
            self.world.after(SECOND // 2, None, self.cluster.attacker.begin)
        self.fault_gap = random.choice((300, 700, 1500)) * MS
        self.change_gap = random.choice((200, 400, 900)) * MS
        bursts = operations // BURST
        edges = self.cluster.edges
        for number in range(bursts):
            edge = edges[number % len(edges)]
            self._plan_burst(edge, int(random.random() * duration))
        for _ in range(bursts // 4):
            ledger = random.choice(self.cluster.ledgers)
            when = int(random.random() * duration)
            self.world.at(when, ledger, ledger.verify, when, self._secret())
        self.by_subject: dict[str, list[Secret]] = {}
        for secret in self.cluster.secrets:
            for subject in secret.subjects:
                self.by_subject.setdefault(subject.name, []).append(secret)
        self.cluster.checker.on_known = self._hunt_stale_accepts
        self.cluster.checker.on_fenced = self._hunt_accepts_after_the_fence
        self.world.after(SECOND, None, self._fault)
        self.world.after(300 * MS, None, self._change)
        # Of its own, so that seeds without a restore stay what they were.
        fate = Random(f"restore {seed}")
        if fate.random() < _RESTORES:
            self.world.at(int(fate.uniform(0.2, 0.7) * duration), None, self._restore, fate)
        fate = Random(f"split brain {seed}")
        if fate.random() < _SPLITS:
            self.world.at(int(fate.uniform(0.1, 0.6) * duration), None, self._depose_database, fate)

    def _restore(self, fate: Random) -> None:
        """A backup takes the log's place: some events are lost."""
        length = len(self.cluster.store.log)
        if length > 1:
            self.faults += 1
            self.restored = True
            self.cluster.restore(max(1, length - fate.randint(1, 6)))

    def _plan_burst(self, edge: object, when: int) -> None:
        self.world.at(when, None, self._burst, edge)

    def _burst(self, edge: EdgeMachine) -> None:
        # Planned without a machine: a restarted process gets the later requests too.
        secrets = [self._secret() for _ in range(BURST)]
        self.world.at(self.world.now, edge, edge.use, self.world.now, secrets)

    def _hunt_stale_accepts(self, subject: Subject) -> None:
        """Ask for what was just taken away: soon, and when the bound has passed."""
        bound = self.cluster.checker.bound
        for edge in self.cluster.edges:
            soon = int(self.random.random() * bound)
            self._ask_at(edge, self.world.now + soon, subject)
            self._ask_at(edge, self.world.now + bound + MS, subject)

    def _hunt_accepts_after_the_fence(self, subject: Subject) -> None:
        for edge in self.cluster.edges:
            self._ask_at(edge, self.world.now + 1, subject)
            self._ask_at(edge, self.world.now + int(self.random.random() * 40 * MS), subject)

    def _ask_at(self, edge: EdgeMachine, when: int, subject: Subject) -> None:
        about = self.by_subject.get(subject.name) or self.cluster.secrets
        start = int(self.random.random() * len(about))
        self.world.at(when, edge, edge.use, when, (about[start:] + about[:start])[:HUNTED])

    def _secret(self) -> Secret:
        secrets = self.cluster.secrets
        random = self.random.random
        key = int(random() * len(secrets) // GENERATIONS)
        newest = self.cluster.generation[key]
        generation = newest if random() < 0.85 else int(random() * min(GENERATIONS, newest + 2))
        return secrets[key * GENERATIONS + generation]

    # -- changes --------------------------------------------------------------------------------

    def _change(self) -> None:
        if self.world.now >= self.duration:
            return
        self.world.after(int(self.random.expovariate(1) * self.change_gap), None, self._change)
        self.world.after(int(self.random.random() * 300 * MS), None, self._take_away_again)
        owner = self.cluster.store.owner
        if owner is not None:
            count = 1 if self.random.random() < 0.8 else 3
            self.world.at(self.world.now, owner, owner.commit, lambda head: self._entries(head, count))

    def _take_away_again(self) -> None:
        """The caller of a take-away had no answer, and asks once more."""
        bad = [subject for subject in self.cluster.subjects.values() if not subject.good]
        owner = self.cluster.store.owner
        if bad and owner is not None:
            self.world.at(self.world.now, owner, owner.take_away_again, self.random.choice(bad))

    def _entries(self, head: int, count: int) -> list[Entry]:
        """What was bad for long enough to be caught gets good again, and something else turns bad.

        Decided at the database, when the commit is certain; nobody else sees it before.
        """
        entries: list[Entry] = []
        long_ago = self.world.now - 1500 * MS
        for name, subject in self.cluster.subjects.items():
            if not subject.good and (subject.bad_committed_at or 0) < long_ago and "secret" not in name:
                entries.append(Entry(self._grants(head + len(entries) + 1, name), good=(name,)))
        # Most things must be good most of the time, or there is nothing to accept.
        bad = sum(not one.good for one in self.cluster.subjects.values() if "secret" not in one.name)
        for _ in range(min(count, 3 - bad) if entries else max(1, min(count, 3 - bad))):
            entries.append(self._entry(head + len(entries) + 1))
        self.cluster.operations += len(entries)
        return entries

    def _entry(self, position: int) -> Entry:
        key = int(self.random.random() * len(self.cluster.generation))
        kind = self.random.choice(_KINDS)
        if kind == "rotate" and self.cluster.generation[key] + 1 < GENERATIONS:
            return self._rotation(position, key)
        secret = self.cluster.secrets[key * GENERATIONS]
        if kind == "organization":
            name = secret.organization_id
        elif kind == "plan":
            name = secret.plan_id
        elif kind == "project":
            name = secret.project_id
        elif kind == "keyspace":
            name = "ks_1"
        else:
            kind, name = "key", f"key_{key}"
        return Entry(Change(position, kind, name, self._digests(name), True), bad=(name,))  # type: ignore[arg-type]

    def _grants(self, position: int, name: str) -> Change:
        if name.startswith("prj"):
            # What is granted inside an organization changes the facts of all its keys.
            return Change(position, "keyspace", "ks_1", (), False)
        kind = {"key": "key", "org": "organization", "pla": "plan", "ks_": "keyspace"}[name[:3]]
        return Change(position, kind, name, self._digests(name), False)  # type: ignore[arg-type]

    def _digests(self, name: str) -> tuple[bytes, ...]:
        if not name.startswith("key_") or self.random.random() < 0.1:
            return ()
        return tuple(one.digest for one in self.cluster.secrets if f"key_{one.key}" == name)

    def _rotation(self, position: int, key: int) -> Entry:
        generation = self.cluster.generation[key]
        self.cluster.generation[key] = generation + 1
        old, new = self.cluster.secrets[key * GENERATIONS + generation :][:2]
        change = Change(position, "key", f"key_{key}", (old.digest, new.digest), True)
        return Entry(change, bad=(f"secret_{key}_{generation}",), appears=new.digest)

    # -- faults ---------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.world.now >= self.duration:
            return
        self.world.after(int(self.random.expovariate(1) * self.fault_gap), None, self._fault)
        self.faults += 1
        self.random.choice(
            (
                self._cut_edge,
                self._cut_edge,
                self._lose,
                self._slow_down,
                self._stop_edge,
                self._kill_edge,
                self._stop_ledger,
                self._kill_ledger,
                self._cut_database,
                self._steal_lock,
            )
        )()

    def _for_a_while(self) -> int:
        return int(self.random.uniform(0.05, 4) * SECOND)

    def _cut_edge(self) -> None:
        edge = self.random.choice(self.cluster.edges)
        for link in self.random.choice(((edge.bus,), (edge.http,), (edge.bus, edge.http))):
            way = self.random.randrange(3)
            link.up = link.up and way == 1
            link.down = link.down and way == 0

            def mend(link: object = link) -> None:
                link.up = link.down = True  # type: ignore[attr-defined]

            self.world.after(self._for_a_while(), None, mend)

    def _lose(self) -> None:
        edge = self.random.choice(self.cluster.edges)
        edge.bus.loss = edge.http.loss = self.random.choice((0.0, 0.05, 0.3))

    def _slow_down(self) -> None:
        edge = self.random.choice(self.cluster.edges)
        for link in (edge.bus, edge.http):
            link.slow = self.random.random() < 0.5

            def mend(link: object = link) -> None:
                link.slow = False  # type: ignore[attr-defined]

            self.world.after(self._for_a_while(), None, mend)

    def _stop_edge(self) -> None:
        self.random.choice(self.cluster.edges).stop_for(self._for_a_while())

    def _kill_edge(self) -> None:
        self.random.choice(self.cluster.edges).restart()

    def _stop_ledger(self) -> None:
        self.random.choice(self.cluster.ledgers).stop_for(self._for_a_while())

    def _kill_ledger(self) -> None:
        ledger = self.random.choice(self.cluster.ledgers)
        ledger.die()
        self.world.after(int(self.random.random() * SECOND), None, ledger.wake_up)

    def _cut_database(self) -> None:
        ledger = self.random.choice(self.cluster.ledgers)
        ledger.cut_database()

        def mend() -> None:
            ledger.database_cut = False

        self.world.after(self._for_a_while(), None, mend)

    def _steal_lock(self) -> None:
        store = self.cluster.store
        store.free(store.session)

    def _depose_database(self, fate: Random) -> None:
        """Split brain: what the owner reaches was deposed, and the others are on the new primary."""
        self.faults += 1
        ledger = self.cluster.store.owner or fate.choice(self.cluster.ledgers)
        ledger.depose_database()

        def mend() -> None:
            ledger.deposed = False

        self.world.after(int(fate.uniform(1, 4) * SECOND), None, mend)

    # -- the run --------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self.world.run(self.duration)
        self._heal()
        self.world.run(self.duration + HEALING - _JUMP_BEFORE_THE_END)
        if self.cluster.attacker is not None:
            self.cluster.attacker.jump()
        self.world.run(self.duration + HEALING)
        self._check_that_all_edges_know_the_truth()
        checker = self.cluster.checker
        return Outcome(
            self.seed,
            self.cluster.operations,
            self.faults,
            checker.accepts,
            checker.stale_accepts,
            checker.fences,
            len(self.cluster.store.log),
            checker.worst_staleness / MS,
            checker.worst_fence / MS,
            checker.bound / MS,
            self.cluster.attacker.attacks if self.cluster.attacker is not None else 0,
        )

    def _heal(self) -> None:
        if self.cluster.attacker is not None:
            self.cluster.attacker.active = False
        for edge in self.cluster.edges:
            for link in (edge.bus, edge.http):
                link.up = link.down = True
                link.loss, link.slow = 0.0, False
        for ledger in self.cluster.ledgers:
            ledger.database_cut = ledger.deposed = False
        if self.restored:
            self.cluster.raise_epoch()

    def _check_that_all_edges_know_the_truth(self) -> None:
        found: dict[tuple[str, str], str] = {}

        async def ask(edge: object, secret: Secret) -> None:
            verdict = await edge.verifier.verify(secret.text, secret.use)  # type: ignore[attr-defined]
            found[edge.name, secret.text] = verdict.code  # type: ignore[attr-defined]

        for edge in self.cluster.edges:
            for secret in self.cluster.secrets:
                run = edge.create_task
                self.world.at(self.world.now, edge, lambda run=run, e=edge, s=secret: run(ask(e, s)))
        self.world.run(self.world.now + 4 * SECOND)
        for edge in self.cluster.edges:
            if not edge.cache.has_lease and self.cluster.attacker is not None:
                raise ViolationError(f"{edge.name} was robbed of its lease")
            assert edge.cache.has_lease, f"seed {self.seed}: {edge.name} has no lease though all is well"
            for secret in self.cluster.secrets:
                said = found.get((edge.name, secret.text))
                exists = secret.generation <= self.cluster.generation[secret.key]
                truth = exists and all(one.good for one in secret.subjects)
                assert (said == "valid") == truth, (
                    f"seed {self.seed}: {edge.name} says {said} of {secret.text}"
                )
        open_fences = [one.keeper.open_fences for one in self.cluster.ledgers if one.keeper is not None]
        assert not any(open_fences), f"seed {self.seed}: fences never held"


def run_seed(seed: int, parts: Parts | None = None, *, operations: int = 5_000) -> Outcome:
    return Scenario(seed, parts or Parts(), operations=operations).run()
