"""A ledger without a log: commands in, outcomes and events out, on a clock that stands still.

The group, the claims and the agenda are the real ones (`services.ledger.group`), so that a test
of the domain sees what a caller would see. Nothing waits, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from heapq import heappop
from itertools import count
from typing import Any, Self, TypeVar

from domain import commands as c
from domain.accounts import Wallet
from domain.commands import Asking, Command
from domain.decisions.charging import UseOutcome
from domain.decisions.reservations import CaptureOutcome
from domain.desk import SYSTEM_ASKING, Placed
from domain.errors import LedgerError
from domain.facts import FactsBook
from domain.ids import place_of
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan, Project
from domain.quotas import QuotaState, quota_states
from domain.state import Due, State
from keyledger_language import NO_USE, RateLimiter, Use
from keyledger_language import events as e
from keyledger_language.instants import SECOND, Instant
from services.ledger.group import DecidedGroup, KnownClaim, Tools
from services.ledger.jobs import Done, Job
from tests.moments import from_text

FRIDAY_NOON: Instant = from_text("2026-10-16T12:00:00Z")
IDEMPOTENCY_SECONDS = 86_400
ROOT_SECRET = "root"

E = TypeVar("E", bound=e.Event)


def fingerprint_of(secret: str) -> bytes:
    """Fingerprint and hint of a secret, without the text having to be a real one."""
    return sha256(secret.encode()).digest()


BOOTSTRAP = c.BootstrapRootKey(name="root", fingerprint=fingerprint_of(ROOT_SECRET), hint="kl_root_...root")


class World:
    """A ledger with a root key; a test makes everything else."""

    def __init__(self, now: Instant = FRIDAY_NOON) -> None:
        self.now = now
        self.state = State()
        self.facts = FactsBook(self.state)
        self.limiter = RateLimiter(lambda: self.now / 1e6)
        self.placed: list[Placed] = []
        """Everything that happened; the event at position n is `placed[n - 1]`."""
        self.claims: dict[bytes, KnownClaim] = {}
        self.asked: list[tuple[Instant, Command, Asking]] = []
        """Every command so far, and its time."""
        self._entropy = count(1)
        self._names = count(1)
        self._tools = Tools(self.facts, self.limiter, lambda: next(self._entropy), 0, IDEMPOTENCY_SECONDS)
        self.root: Key = self.ask(BOOTSTRAP, by=SYSTEM_ASKING)

    # -- asking

    @property
    def platform(self) -> Asking:
        """The first root key, which may do everything."""
        return Asking(actor=self.root.id)

    def ask(self, command: Command, *, by: Asking | None = None) -> Any:
        """Decide and commit one command; its result, or its refusal as an exception."""
        outcome = self.together((command, by or self.platform))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def together(self, *asked: tuple[Command, Asking] | Command) -> list[Any]:
        """Decide and commit several commands in one group: results and refusals, in order."""
        self.asked += [(self.now, *_with_asking(one, self)) for one in asked]
        group = self.decide(*asked)
        self.commit(group)
        return [one.result if isinstance(one, Done) else one for _, one in group.outcomes]

    def decide(
        self, *asked: tuple[Command, Asking] | Command, above: DecidedGroup | None = None
    ) -> DecidedGroup:
        """Decide a group without committing it. `above`: the draft that it is decided on."""
        return self.decide_with(self._pop_due(), *asked, above=above)

    def decide_with(
        self,
        due: list[Due],
        *asked: tuple[Command, Asking] | Command,
        above: DecidedGroup | None = None,
    ) -> DecidedGroup:
        """The same with these entries of the agenda."""
        group = DecidedGroup(self.state, self._tools, self.now, self.claims.get, above=above)
        group.decide(due, [self._job(*_with_asking(one, self)) for one in asked], frozenset())
        return group

    def commit(self, group: DecidedGroup) -> None:
        """What the command queue does once the group is in the log."""
        for claimed in group.desk.claims:
            event = None if claimed.expires_at is not None else group.desk.placed[claimed.index].event
            assert claimed.digest not in self.claims, "a name is taken once"
            self.claims[claimed.digest] = KnownClaim(group.base + claimed.index + 1, event, claimed.answer)
        self.placed += group.desk.placed
        if group.desk.placed:
            group.merge()

    def _job(self, command: Command, asking: Asking) -> Job:
        job = Job(command, asking, None)  # type: ignore[arg-type]  # nothing waits here
        if isinstance(command, c.RefundCharge):
            place = place_of(command.charge_id)[1]
            job.charge = self.placed[place - 1].event if 0 < place <= len(self.placed) else None
        return job

    def _pop_due(self) -> list[Due]:
        agenda, now = self.state.agenda, max(self.now, self.state.at)
        due: list[Due] = []
        while agenda and agenda[0][0] <= now:
            due.append(heappop(agenda))
        return due

    # -- time

    def wait(self, seconds: float) -> Self:
        """Let time pass; its effects are recorded by the next command."""
        self.now += round(seconds * SECOND)
        return self

    def at(self, text: str) -> Self:
        """Set the clock, also backwards, as real clocks do."""
        self.now = from_text(text)
        return self

    def tick(self) -> Self:
        """Record the effects of time."""
        self.ask(c.Tick(), by=SYSTEM_ASKING)
        return self

    # -- making things

    def keyspace(self, **fields: Any) -> Keyspace:
        """A keyspace with its own prefix."""
        number = next(self._names)
        fields = {"name": f"gateway {number}", "prefix": f"k{number}x_"} | fields
        result: Keyspace = self.ask(c.DefineKeyspace(**fields))
        return result

    def organization(self, *, balance: int = 0, **fields: Any) -> Organization:
        """An organization, with this much in its wallet."""
        fields = {"name": "Acme"} | fields
        opened: Organization = self.ask(c.OpenOrganization(**fields))
        if balance:
            self.deposit(opened.id, balance)
        return opened

    def project(self, organization_id: str, **fields: Any) -> Project:
        """A project of that organization."""
        fields = {"organization_id": organization_id, "name": "search"} | fields
        command = c.OpenProject(**fields)
        result: Project = self.ask(command)
        return result

    def plan(self, **fields: Any) -> Plan:
        """A plan."""
        fields = {"name": "pro", "models": "*"} | fields
        result: Plan = self.ask(c.DefinePlan(**fields))
        return result

    def key(self, keyspace_id: str, organization_id: str | None, *, secret: str = "", **fields: Any) -> Key:
        """A key; without a secret's text it gets a random one."""
        traces = fingerprint_of(secret or f"secret {next(self._names)}")
        fields = {"name": "ada's key", "fingerprint": traces, "hint": "k...abcd"} | fields
        command = c.CreateKey(keyspace_id=keyspace_id, organization_id=organization_id, **fields)
        result: Key = self.ask(command)
        return result

    def root_key(
        self, *permissions: str, organization_id: str | None = None, keyspace_id: str | None = None
    ) -> Asking:
        """A root key with these permissions, as a caller."""
        key = self.key(
            self.root.keyspace_id,
            organization_id,
            scopes=c.NewScopes(permissions=permissions),
            bound_keyspace_id=keyspace_id,
        )
        return Asking(actor=key.id, organization_id=organization_id, keyspace_id=keyspace_id)

    def deposit(self, organization_id: str, amount: int, reference: str | None = None) -> Wallet:
        """Put money into a wallet (or take it out)."""
        reference = reference or f"invoice-{next(self._names)}"
        command = c.DepositCredits(organization_id=organization_id, amount_micros=amount, reference=reference)
        result: Wallet = self.ask(command).wallet
        return result

    # -- what is left

    def wallet(self, organization_id: str) -> Wallet:
        """The wallet, as committed."""
        return self.state.wallets[organization_id]

    def quota(self, key_id: str, number: int = 0, project_id: str | None = None) -> QuotaState:
        """The current state of a quota."""
        now = max(self.now, self.state.at)
        return quota_states(self.state, self.state.keys[key_id], now, project_id)[number]

    # -- what happened

    @property
    def events(self) -> list[e.Event]:
        """Everything that happened, in order."""
        return [placed.event for placed in self.placed]

    def all(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E:
        """The last event of one kind."""
        return self.all(kind)[-1]


def _with_asking(asked: tuple[Command, Asking] | Command, world: World) -> tuple[Command, Asking]:
    return asked if isinstance(asked, tuple) else (asked, world.platform)


class Shop(World):
    """One gateway, one organization with money, one key: the start of most money tests."""

    def __init__(
        self,
        *,
        balance: int = 1_000,
        now: Instant = FRIDAY_NOON,
        gateway: dict[str, Any] | None = None,
        customer: dict[str, Any] | None = None,
        **key: Any,
    ) -> None:
        super().__init__(now)
        self._requests = (f"request-{number}" for number in count(1))
        self.gateway = self.keyspace(**gateway or {})
        self.customer = self.organization(balance=balance, **customer or {})
        self.shopper = self.key(self.gateway.id, self.customer.id, secret="open sesame", **key)

    @property
    def requests(self) -> Iterator[str]:
        """Request ids that were never used."""
        return self._requests

    @property
    def purse(self) -> Wallet:
        """The organization's wallet, as committed."""
        return self.wallet(self.customer.id)

    def charging(self, amount: int, request_id: str | None = None, **fields: Any) -> c.ChargeUsage:
        """The command that charges the key."""
        fields = {"key_id": self.shopper.id} | fields
        return c.ChargeUsage(request_id=request_id or next(self._requests), base_micros=amount, **fields)

    def charge(self, amount: int, request_id: str | None = None, **fields: Any) -> UseOutcome:
        """Charge the key."""
        result: UseOutcome = self.ask(self.charging(amount, request_id, **fields))
        return result

    def reserve(
        self, amount: int, request_id: str | None = None, *, seconds: int = 600, use: Use = NO_USE
    ) -> UseOutcome:
        """Hold money for the key."""
        command = c.ReserveCredits(
            key_id=self.shopper.id,
            request_id=request_id or next(self._requests),
            base_micros=amount,
            expires_in_seconds=seconds,
            use=use,
        )
        result: UseOutcome = self.ask(command)
        return result

    def hold(self, amount: int, *, seconds: int = 600, use: Use = NO_USE) -> str:
        """Hold money; the reservation's id."""
        event = self.reserve(amount, seconds=seconds, use=use).event
        assert isinstance(event, e.CreditsReserved)
        return event.reservation_id

    def capture(
        self, reservation_id: str, amount: int, request_id: str | None = None, *, final: bool = True
    ) -> CaptureOutcome:
        """Capture the reservation, or part of it."""
        command = c.CaptureReservation(
            reservation_id=reservation_id,
            request_id=request_id or next(self._requests),
            base_micros=amount,
            final=final,
        )
        result: CaptureOutcome = self.ask(command)
        return result

    def release(self, reservation_id: str) -> Any:
        """Release the reservation."""
        return self.ask(c.ReleaseReservation(reservation_id=reservation_id))

    def refund(self, charge_id: str, amount: int | None = None, request_id: str | None = None) -> Any:
        """Give back a charge, in part or whole."""
        command = c.RefundCharge(
            charge_id=charge_id, request_id=request_id or next(self._requests), amount_micros=amount
        )
        return self.ask(command)

    def change(self, **fields: Any) -> Key:
        """Set fields of the key."""
        result: Key = self.ask(c.ChangeKey(key_id=self.shopper.id, **fields))
        return result


def charge_id_of(outcome: UseOutcome | CaptureOutcome) -> str:
    """The id of the charge that an outcome made."""
    assert isinstance(outcome.event, e.UsageCharged | e.ReservationCaptured)
    return outcome.event.charge_id


def refusal_of(world: World, command: Command, *, by: Asking | None = None) -> str:
    """The code with which a command is refused; `accepted` if it is not."""
    try:
        world.ask(command, by=by)
    except LedgerError as error:
        return error.code
    return "accepted"
