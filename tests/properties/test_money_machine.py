"""Random histories of money: what is deposited is somewhere, limits hold, and a replay is the same.

Hypothesis prints what it did when it fails, and the seed to do it again (`--hypothesis-seed`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from domain import commands as c
from domain.errors import LedgerError
from domain.evolve import evolve
from domain.personal import PLATFORM
from domain.state import TABLES, State
from domain.windows import WINDOWS, window_starts
from infra.memory.state_rows import MemoryStateRows
from infra.postgres.data_keys import DataKeys
from keyledger_language import Use
from keyledger_language import events as e
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, SECOND
from services.ledger.narrowings import Narrowings
from services.ledger.saving import StateKeeper
from tests.domain.given import BOOTSTRAP, Shop, World
from tests.properties.recount import Recount, windows_of

AMOUNTS = st.integers(0, 300)
CHANCES = st.integers(0, 1)
QUOTAS = st.lists(
    st.builds(
        Quota,
        unit=st.sampled_from(["micros", "requests"]),
        window=st.sampled_from(WINDOWS),
        limit=st.sampled_from([0, 1, 2, 100, 300, 900]),
        alert_percents=st.sampled_from([(), (50,), (80, 100)]),
    ),
    max_size=3,
    unique_by=lambda quota: (quota.unit, quota.window),
).map(tuple)
STEPS = st.sampled_from([1, SECOND, 3_600 * SECOND, DAY - 1, DAY, 3 * DAY, 9 * DAY, 31 * DAY, -SECOND, -DAY])


class Money(RuleBasedStateMachine):
    """Callers do what they may do, on a clock that jumps; the sums are checked after each step."""

    keys = Bundle("keys")
    reservations = Bundle("reservations")
    charges = Bundle("charges")
    asked_before = Bundle("asked_before")

    @initialize(target=keys, quotas=QUOTAS, balance=st.integers(0, 5_000))
    def begin(self, quotas: tuple[Quota, ...], balance: int) -> Any:
        shop = self.shop = Shop(balance=balance, quotas=quotas)
        self.seen = 0
        self.recount = Recount()
        self.limits: dict[str, int | None] = {}
        self.quotas: dict[str, tuple[Quota, ...]] = {}
        self.told: set[tuple[Any, ...]] = set()
        neighbour = shop.organization(balance=500)
        self.projects = {
            organization: shop.project(organization).id for organization in (shop.customer.id, neighbour.id)
        }
        plan = shop.plan(price_multiplier="1.5")
        second = shop.key(shop.gateway.id, shop.customer.id, plan_id=plan.id)
        third = shop.key(shop.gateway.id, neighbour.id)
        self.check()
        return multiple(shop.shopper.id, second.id, third.id)

    # -- what callers do

    def ask(self, command: c.Command) -> Any:
        try:
            return self.shop.ask(command)
        except LedgerError as error:
            return error

    def use(self, key_id: str, in_project: int) -> Use:
        organization = str(self.shop.state.keys[key_id].organization_id)
        return Use(project_id=self.projects[organization] if in_project else None)

    @rule(target=charges, key=keys, amounts=st.lists(AMOUNTS, min_size=1, max_size=4), in_project=CHANCES)
    def charge_some(self, key: str, amounts: list[int], in_project: int) -> Any:
        """Several in one group."""
        use = self.use(key, in_project)
        outcomes = self.shop.together(
            *[self.shop.charging(amount, key_id=key, use=use) for amount in amounts]
        )
        return multiple(*[one.event.charge_id for one in outcomes if one.event is not None])

    @rule(target=asked_before, key=keys, amount=AMOUNTS, in_project=CHANCES)
    def prepare(self, key: str, amount: int, in_project: int) -> c.ChargeUsage:
        return self.shop.charging(amount, key_id=key, use=self.use(key, in_project))

    @rule(target=charges, command=asked_before)
    def charge(self, command: c.ChargeUsage) -> Any:
        """The same command may come many times: it is charged once."""
        outcome = self.ask(command)
        again = self.ask(command)
        event = getattr(outcome, "event", None)

        assert getattr(again, "event", None) == event
        return multiple() if event is None or outcome.replayed else event.charge_id

    @rule(
        target=reservations,
        key=keys,
        amount=AMOUNTS,
        in_project=CHANCES,
        seconds=st.sampled_from([1, 86_400, 2_592_000]),
    )
    def reserve(self, key: str, amount: int, in_project: int, seconds: int) -> Any:
        command = c.ReserveCredits(
            key_id=key,
            request_id=next(self.shop.requests),
            base_micros=amount,
            expires_in_seconds=seconds,
            use=self.use(key, in_project),
        )
        event = getattr(self.ask(command), "event", None)
        return multiple() if event is None else event.reservation_id

    @rule(target=charges, reservation=reservations, amount=AMOUNTS, final=st.booleans())
    def capture(self, reservation: str, amount: int, final: bool) -> Any:  # noqa: FBT001
        command = c.CaptureReservation(
            reservation_id=reservation,
            request_id=next(self.shop.requests),
            base_micros=amount,
            final=final,
        )
        event = getattr(self.ask(command), "event", None)
        return multiple() if event is None else event.charge_id

    @rule(reservation=consumes(reservations))
    def release(self, reservation: str) -> None:
        self.ask(c.ReleaseReservation(reservation_id=reservation))

    @rule(charge=charges, amount=st.one_of(st.none(), AMOUNTS))
    def refund(self, charge: str, amount: int | None) -> None:
        self.ask(c.RefundCharge(charge_id=charge, request_id=next(self.shop.requests), amount_micros=amount))

    @rule(key=keys, amount=st.integers(-400, 800), number=st.integers(0, 9))
    def deposit(self, key: str, amount: int, number: int) -> None:
        organization = str(self.shop.state.keys[key].organization_id)
        self.ask(
            c.DepositCredits(organization_id=organization, amount_micros=amount, reference=f"i-{number}")
        )

    @rule(key=keys, limit=st.sampled_from([0, 100, None]), alert=st.sampled_from([None, 0, 100]))
    def set_terms(self, key: str, limit: int | None, alert: int | None) -> None:
        organization = str(self.shop.state.keys[key].organization_id)
        self.ask(
            c.SetWalletTerms(
                organization_id=organization, credit_limit_micros=limit, alert_below_micros=alert
            )
        )

    @rule(key=keys, quotas=QUOTAS, level=st.sampled_from(["key", "project", "organization"]))
    def set_quotas(self, key: str, quotas: tuple[Quota, ...], level: str) -> None:
        organization = str(self.shop.state.keys[key].organization_id)
        if level == "key":
            self.ask(c.ChangeKey(key_id=key, quotas=quotas))
        elif level == "project":
            project = self.projects[organization]
            self.ask(c.ChangeProject(organization_id=organization, project_id=project, quotas=quotas))
        else:
            self.ask(c.ChangeOrganization(organization_id=organization, quotas=quotas))

    @rule(step=STEPS)
    def let_time_pass(self, step: int) -> None:
        self.shop.now += step
        self.shop.tick()

    @rule(commands=st.lists(asked_before, min_size=1, max_size=5))
    def lose_a_group(self, commands: list[c.ChargeUsage]) -> None:
        """A group that is not committed leaves no trace."""
        before = everything(self.shop.state)
        agenda = list(self.shop.state.agenda)
        group = self.shop.decide(*commands)
        group.desk.undo()
        self.shop.state.agenda = agenda

        assert everything(self.shop.state) == before

    # -- what must be true

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "shop"):
            return
        for event in self.shop.events[self.seen :]:
            self.recount.count(event)
            self._note(event)
            self._within_limits(event)
        self.seen = len(self.shop.events)
        self._sums()
        self._counters()

    def _note(self, event: e.Event) -> None:
        match event:
            case e.WalletTermsSet():
                self.limits[str(event.organization_id)] = event.credit_limit_micros
            case e.KeyCreated(quotas=quotas, key_id=subject) | e.QuotasSet(quotas=quotas, key_id=subject):
                self.quotas[subject] = quotas
            case e.ProjectQuotasSet(quotas=quotas, project_id=subject):
                self.quotas[subject] = quotas
            case e.OrganizationQuotasSet(quotas=quotas):
                self.quotas[str(event.organization_id)] = quotas
            case e.ThresholdReached(window=str()):
                name = (event.subject_id, event.unit, event.window, event.window_start, event.percent)
                assert name not in self.told, "an alert is told once per window"
                self.told.add(name)
            case _:
                pass

    def _within_limits(self, event: e.Event) -> None:
        """Who took money (or a request) found room for it: in the wallet, and in each quota."""
        if isinstance(event, e.UsageCharged | e.CreditsReserved):
            taken, requests, at = event.amount_micros, 1, event.at
        elif isinstance(event, e.ReservationCaptured):
            taken, requests, at = event.amount_micros - event.held_micros, 0, event.window_at
        else:
            return
        limit = self.limits.get(str(event.organization_id), 0)
        if taken and limit is not None:
            assert event.balance_micros - event.reserved_micros >= -limit
        for subject in {event.key_id, event.project_id, event.organization_id} - {None}:
            for quota in self.quotas.get(str(subject), ()):
                window = windows_of(at)[WINDOWS.index(quota.window)]
                spent = self.recount.micros if quota.unit == "micros" else self.recount.requests
                if taken if quota.unit == "micros" else requests:
                    assert spent[str(subject)][window] <= quota.limit

    def _sums(self) -> None:
        recount = self.recount
        for organization, wallet in self.shop.state.wallets.items():
            spent = recount.charged[organization] - recount.refunded[organization]

            assert wallet.balance + spent == recount.deposited[organization]
            assert wallet.reserved == recount.open_holds(organization)
            assert wallet.available + wallet.reserved + spent == recount.deposited[organization]
            assert (wallet.deposited, wallet.charged, wallet.refunded) == (
                recount.deposited[organization],
                recount.charged[organization],
                recount.refunded[organization],
            )
        assert all(micros >= 0 for micros in recount.held.values())
        assert all(recount.given_back[charge] <= recount.taken[charge] for charge in recount.given_back)

    def _counters(self) -> None:
        for subject, counters in self.shop.state.counters.items():
            now = windows_of(counters.day * DAY)
            for window, tally in zip(now, counters.tallies, strict=True):
                assert tally.micros == self.recount.micros[subject][window]
                assert tally.requests == self.recount.requests[subject][window]
            for name, tally in (counters.past or {}).items():
                window = windows_of(tally.start * DAY)[WINDOWS.index(name.partition("/")[0])]

                assert tally.micros == self.recount.micros[subject][window]
            still_open = [
                one
                for one in self.shop.state.reservations.values()
                if one.status == "open" and subject in (one.key_id, one.project_id, one.organization_id)
            ]
            assert sum((counters.held or {}).values()) == len(WINDOWS) * len(still_open)
            for one in still_open:
                self._kept(subject, one.reserved_at)

    def _kept(self, subject: str, reserved_at: int) -> None:
        """What is held can be counted in its own windows, however long ago they were."""
        starts = window_starts(reserved_at // DAY)
        for window, start, name in zip(WINDOWS, starts, windows_of(reserved_at), strict=True):
            tally = self.shop.state.counters[subject].tally(window, start)

            assert tally is not None
            assert tally.micros == self.recount.micros[subject][name]

    def teardown(self) -> None:
        if not hasattr(self, "shop"):
            return
        self._replayed()
        asyncio.run(self._saved_and_loaded())
        self._decided_in_groups()

    def _replayed(self) -> None:
        """The events alone make the same state."""
        replayed = State()
        for position, placed in enumerate(self.shop.placed, start=1):
            replayed.versions[placed.stream] = placed.version
            evolve(replayed, placed.event, position)

        assert everything(replayed) == everything(self.shop.state)

    async def _saved_and_loaded(self) -> None:
        """So do the rows that it was saved in (settled reservations are looked up by id)."""
        rows = MemoryStateRows()
        live = self.shop.state
        changed = {name: set(getattr(live, name)) for name in TABLES}
        data_keys = DataKeys()
        for subject in (PLATFORM, *live.organizations):
            data_keys.encrypt(subject, b"", "its first event")
        await StateKeeper(rows, live, Narrowings(), data_keys).save(changed)
        loaded = State()
        keeper = StateKeeper(rows, loaded, Narrowings(), data_keys)
        await keeper.load(_nothing_to_learn)
        for reservation in live.reservations:
            if reservation not in loaded.reservations:
                await keeper.find_reservation(reservation)

        assert everything(loaded) == everything(live)
        assert {due for due in live.agenda if _matters(live, due)} <= set(loaded.agenda)

    def _decided_in_groups(self) -> None:
        """The same commands in groups make the same events."""
        world = World(self.shop.asked[0][0])
        assert self.shop.asked[0][1] == BOOTSTRAP
        waiting: list[tuple[c.Command, c.Asking]] = []
        for at, command, asking in self.shop.asked[1:]:
            # A caller knows the id of a charge only when its group was committed.
            if at != world.now or isinstance(command, c.RefundCharge) or len(waiting) == 7:
                world.together(*waiting)
                waiting.clear()
            world.now = at
            waiting.append((command, asking))
        world.together(*waiting)

        assert world.placed == self.shop.placed
        assert everything(world.state) == everything(self.shop.state)


async def _nothing_to_learn() -> None:
    """The data keys are known."""


def _matters(state: State, due: tuple[int, str, str, int]) -> bool:
    when, kind, subject, _ = due
    if kind == "reservation_expires":
        return state.reservations[subject].status == "open"
    return kind == "key_expires" and state.keys[subject].expires_at == when


def everything(state: State) -> dict[str, Any]:
    """The whole state as plain values, so that nothing is compared with itself."""
    tables = {name: dict(getattr(state, name)) for name in TABLES}
    tables["members"] = {name: sorted(members) for name, members in tables["members"].items()}
    tables["versions"] = {stream: version for stream, version in tables["versions"].items() if version}
    tables["head"], tables["at"] = state.head, state.at  # type: ignore[assignment]
    return msgspec.msgpack.decode(msgspec.msgpack.encode(tables), strict=False)  # type: ignore[no-any-return]


Money.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, print_blob=True)
TestMoney = Money.TestCase
