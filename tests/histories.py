"""Random histories that the ledger could have had: many kinds of events, sums that are right."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from domain.evolve import evolve
from domain.ids import new_id, placed_id
from domain.state import State
from keyledger_language import Scopes, SecretFormat
from keyledger_language import events as e
from keyledger_language.instants import DAY, SECOND, Instant

NOON: Instant = 1_790_000_000 * SECOND
ROOT = "key_00000000000000000000000000"
MODELS = ("gpt-5", "opus", None)
PROVIDERS = ("acme", None)


class History:
    """Grows by events; the same seed gives the same history."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.state = State()
        self.events: list[e.Event] = []
        self.at = NOON
        self.keys: list[str] = []
        self.organizations: list[str] = []
        self.charges: list[e.UsageCharged] = []
        self.refunded: dict[str, int] = {}
        self.requests = 0
        self.told = 0
        self.add(
            e.KeyspaceDefined(
                at=self.at,
                keyspace_id=self.id("ks"),
                name="gateway",
                preset="default",
                prefix="kl_live_",
                secret_format=SecretFormat(),
                accepted_formats=(),
                credential_locations=("header:X-API-Key",),
                tenant_locations={},
                denial_status={},
                require_balance=False,
                required_dimensions=(),
            )
        )
        self.keyspace_id = self.events[0].keyspace_id  # type: ignore[attr-defined]  # it is a KeyspaceDefined
        self.plan_id = self.id("plan")
        self.add(
            e.PlanDefined(at=self.at, plan_id=self.plan_id, name="pro", models="*", price_multiplier="1.5")
        )

    @property
    def head(self) -> int:
        """The position of the last event."""
        return len(self.events)

    def id(self, kind: str) -> str:
        """A new id."""
        return new_id(kind, self.at, self.random.getrandbits(80))

    def add(self, event: e.Event) -> None:
        """Let an event happen."""
        self.events.append(event)
        evolve(self.state, event, len(self.events))

    def grow(self, count: int) -> list[e.Event]:
        """Let `count` or a few more events happen, and tell all that are new."""
        enough = len(self.events) + count
        while len(self.events) < enough:
            self.at += self.random.choice((0, 1, 1_000, SECOND, 600 * SECOND))
            if self.random.random() < 0.01:
                self.at += DAY
            self.random.choice(self._possible())()
        return self.untold()

    def untold(self) -> list[e.Event]:
        """What has happened since this was asked last."""
        news, self.told = self.events[self.told :], len(self.events)
        return news

    def _possible(self) -> list[Callable[[], None]]:
        if not self.organizations:
            return [self.open_organization]
        if not self.keys:
            return [self.create_key]
        rare: list[Callable[[], None]] = [
            self.open_organization,
            self.open_project,
            self.create_key,
            self.change_key,
            self.end_key,
            self.deposit,
            self.rename_organization,
            self.set_terms,
            self.see_keys,
            self.deny,
            self.reach_threshold,
            self.change_plan,
        ]
        return [*rare, *[self.charge] * 12, *[self.refund] * 3, *[self.reserve] * 4, *[self.settle] * 4]

    # -- what can happen ------------------------------------------------------------------------

    def open_organization(self) -> None:
        organization_id = self.id("org")
        name = f"Org {len(self.organizations)} \0 Ünïcode"
        private = e.Private(name=name, external_id=f"ext-{len(self.organizations)}", metadata={"tier": 1})
        self.add(
            e.OrganizationOpened(at=self.at, actor=ROOT, organization_id=organization_id, private=private)
        )
        self.organizations.append(organization_id)
        self.deposit(organization_id)

    def open_project(self) -> None:
        private = e.Private(name="project")
        self.add(
            e.ProjectOpened(
                at=self.at,
                actor=ROOT,
                organization_id=self.any_organization(),
                project_id=self.id("prj"),
                private=private,
            )
        )

    def create_key(self) -> None:
        number = len(self.keys)
        key_id = self.id("key")
        origin = e.Origin(ip="192.0.2.7", user_agent="curl", request_id=f"trace-{number}")
        self.add(
            e.KeyCreated(
                at=self.at,
                actor=ROOT,
                organization_id=self.any_organization(),
                key_id=key_id,
                keyspace_id=self.keyspace_id,
                kind="solo",
                environment=self.random.choice(("live", "test", None)),
                plan_id=self.random.choice((self.plan_id, None)),
                scopes=Scopes(projects=self.random.choice(("*", ("prj_a", "prj_b")))),
                quotas=(),
                rate_limits=(),
                expires_at=self.random.choice((None, self.at + 20 * DAY)),
                fingerprint=hashlib.sha256(key_id.encode()).digest(),
                hint=f"kl_live_...{number:04d}",
                private=e.Private(
                    name=f"Key {number}",
                    owner_id=self.random.choice((None, "ann", "bob")),
                    tags=self.random.choice((None, ("red",), ("red", "blue"))),
                    metadata={"n": number},
                    origin=origin,
                ),
            )
        )
        self.keys.append(key_id)

    def change_key(self) -> None:
        key_id = self.any_key()
        key = self.state.keys[key_id]
        where = {"at": self.at, "actor": ROOT, "organization_id": key.organization_id, "key_id": key_id}
        change = self.random.randrange(7)
        if change == 0:
            name = self.random.choice(("Zebra", "apple", "Mango 100%"))
            self.add(e.KeyRenamed(**where, private=e.Private(name=name, before={"name": key.name})))  # type: ignore[arg-type]
        elif change == 1:
            private = e.Private(tags=("blue",), before={"tags": list(key.tags)})
            self.add(e.TagsSet(**where, private=private))  # type: ignore[arg-type]
        elif change == 2:
            self.add(e.EnvironmentSet(**where, environment="staging", before=key.environment))  # type: ignore[arg-type]
        elif change == 3:
            self.add(e.ScopesEdited(**where, scopes=Scopes(models=("opus",)), before=key.scopes))  # type: ignore[arg-type]
        elif change == 4:
            self.add(e.KeyEnabled(**where) if key.disabled else e.KeyDisabled(**where))  # type: ignore[arg-type]
        elif change == 5:
            self.add(e.ExpirySet(**where, expires_at=self.at + DAY, before=key.expires_at))  # type: ignore[arg-type]
        else:
            fingerprint = hashlib.sha256(f"{key_id}{key.generation}".encode()).digest()
            rotated = e.KeyRotated(
                **where,  # type: ignore[arg-type]
                generation=key.generation + 1,
                fingerprint=fingerprint,
                hint="kl_live_...next",
                older_end_at=self.at,
            )
            self.add(rotated)

    def end_key(self) -> None:
        key_id = self.any_key()
        key = self.state.keys[key_id]
        where = {"at": self.at, "actor": ROOT, "organization_id": key.organization_id, "key_id": key_id}
        if key.revoked_at is None:
            self.add(e.KeyRevoked(**where, private=e.Private(reason="leaked")))  # type: ignore[arg-type]
        elif not key.deleted:
            self.add(e.KeyDeleted(**where))  # type: ignore[arg-type]

    def rename_organization(self) -> None:
        organization_id = self.any_organization()
        before = {"name": self.state.organizations[organization_id].name}
        private = e.Private(after={"name": f"Org at {self.at}"}, before=before)
        self.add(
            e.OrganizationChanged(at=self.at, actor=ROOT, organization_id=organization_id, private=private)
        )

    def change_plan(self) -> None:
        before = {"name": self.state.plans[self.plan_id].name}
        changes = {"name": f"plan at {self.at}"}
        self.add(e.PlanChanged(at=self.at, actor=ROOT, plan_id=self.plan_id, changes=changes, before=before))

    def deposit(self, organization_id: str | None = None) -> None:
        organization_id = organization_id or self.any_organization()
        wallet = self.state.wallets[organization_id]
        amount = self.random.randrange(1_000_000, 9_000_000)
        kind = e.CreditsDeposited
        if self.random.random() < 0.2 and wallet.available > 1_000:
            amount, kind = -self.random.randrange(1, 1_000), e.CreditsAdjusted  # type: ignore[assignment]
        self.add(
            kind(
                at=self.at,
                actor=ROOT,
                organization_id=organization_id,
                balance_micros=wallet.balance + amount,
                reserved_micros=wallet.reserved,
                amount_micros=amount,
                reference=f"invoice-{self.head}",
            )
        )

    def set_terms(self) -> None:
        wallet = self.state.wallets[self.any_organization()]
        self.add(
            e.WalletTermsSet(
                at=self.at,
                actor=ROOT,
                organization_id=wallet.organization_id,
                credit_limit_micros=self.random.choice((0, None)),
                alert_below_micros=None,
                before={"credit_limit_micros": wallet.credit_limit, "alert_below_micros": wallet.alert_below},
            )
        )

    def charge(self, key_id: str | None = None) -> None:
        key = self.state.keys[key_id or self.any_key()]
        wallet = self.state.wallets[str(key.organization_id)]
        base = self.random.randrange(1, 2_000)
        amount = (base * 3 + 1) // 2
        self.requests += 1
        event = e.UsageCharged(
            at=self.at,
            actor=ROOT,
            organization_id=key.organization_id,
            key_id=key.id,
            request_id=f"request-{self.requests}",
            base_micros=base,
            price_multiplier="1.5",
            amount_micros=amount,
            balance_micros=wallet.balance - amount,
            reserved_micros=wallet.reserved,
            charge_id=placed_id("chg", self.at, partition=0, position=self.head + 1),
            model=self.random.choice(MODELS),
            provider=self.random.choice(PROVIDERS),
            project_id=self.random.choice((None, f"prj_of_{key.organization_id}")),
            tenant_user_id=self.random.choice((None, "user-1")),
            private=self.random.choice((None, e.Private(metadata={"trace": "x"}))),
        )
        self.add(event)
        self.charges.append(event)

    def refund(self) -> None:
        if not self.charges:
            return
        charge = self.random.choice(self.charges)
        so_far = self.refunded.get(charge.charge_id, 0)
        left = charge.amount_micros - so_far
        if left <= 0:
            return
        amount = self.random.randrange(1, left + 1)
        self.refunded[charge.charge_id] = so_far + amount
        wallet = self.state.wallets[str(charge.organization_id)]
        self.requests += 1
        self.add(
            e.UsageRefunded(
                at=self.at,
                actor=ROOT,
                organization_id=charge.organization_id,
                key_id=charge.key_id,
                charge_id=charge.charge_id,
                request_id=f"request-{self.requests}",
                amount_micros=amount,
                refunded_micros=so_far + amount,
                window_at=charge.at,
                balance_micros=wallet.balance + amount,
                reserved_micros=wallet.reserved,
                project_id=charge.project_id,
                model=charge.model,
                provider=charge.provider,
                tenant_user_id=charge.tenant_user_id,
            )
        )

    def reserve(self) -> None:
        key = self.state.keys[self.any_key()]
        wallet = self.state.wallets[str(key.organization_id)]
        amount = self.random.randrange(10, 2_000)
        self.requests += 1
        self.add(
            e.CreditsReserved(
                at=self.at,
                actor=ROOT,
                organization_id=key.organization_id,
                key_id=key.id,
                request_id=f"request-{self.requests}",
                base_micros=amount,
                price_multiplier="1",
                amount_micros=amount,
                balance_micros=wallet.balance,
                reserved_micros=wallet.reserved + amount,
                reservation_id=placed_id("rsv", self.at, partition=0, position=self.head + 1),
                expires_at=self.at + DAY,
                model=self.random.choice(MODELS),
                project_id=self.random.choice((None, f"prj_of_{key.organization_id}")),
            )
        )

    def settle(self) -> None:
        still_open = [one for one in self.state.reservations.values() if one.status == "open"]
        if not still_open:
            return
        one = self.random.choice(still_open)
        wallet = self.state.wallets[one.organization_id]
        where = {"at": self.at, "actor": ROOT, "organization_id": one.organization_id, "key_id": one.key_id}
        how = self.random.randrange(4)
        if how >= 2:
            kind = e.ReservationReleased if how == 2 else e.ReservationExpired
            self.add(
                kind(
                    **where,  # type: ignore[arg-type]
                    reservation_id=one.id,
                    released_micros=one.held_micros,
                    balance_micros=wallet.balance,
                    reserved_micros=wallet.reserved - one.held_micros,
                )
            )
            return
        taken = self.random.randrange(one.held_micros + 50)
        held = min(taken, one.held_micros)
        released = one.held_micros - held if how else 0
        self.requests += 1
        self.add(
            e.ReservationCaptured(
                **where,  # type: ignore[arg-type]
                reservation_id=one.id,
                charge_id=placed_id("chg", self.at, partition=0, position=self.head + 1),
                request_id=f"request-{self.requests}",
                base_micros=taken,
                price_multiplier="1",
                amount_micros=taken,
                held_micros=held,
                uncovered_micros=0,
                released_micros=released,
                final=bool(how),
                window_at=one.reserved_at,
                balance_micros=wallet.balance - taken,
                reserved_micros=wallet.reserved - held - released,
                project_id=one.project_id,
                model=one.model,
            )
        )

    def see_keys(self) -> None:
        keys = self.random.sample(self.keys, min(3, len(self.keys)))
        self.add(
            e.KeysSeen(at=self.at, seen=tuple((key, self.at - 5, self.random.randrange(9)) for key in keys))
        )

    def deny(self) -> None:
        key = self.state.keys[self.any_key()]
        self.requests += 1
        denial = e.Denial(
            request_id=f"request-{self.requests}", code="billing_shortfall", at=self.at, amount_micros=14,
            base_micros=7, price_multiplier="2", model="gpt-5", tenant_user_id="u-1",
        )  # fmt: skip
        self.add(
            e.UsageDenied(
                at=self.at,
                organization_id=key.organization_id,
                private=e.Private(metadata={"0": {"trace": "t-1"}}),
                key_id=key.id,
                counts={"billing_shortfall": 3, "model_denied": 1},
                requests=(denial,),
            )
        )

    def reach_threshold(self) -> None:
        self.add(
            e.ThresholdReached(
                at=self.at,
                organization_id=self.any_organization(),
                level="key",
                subject_id=self.any_key(),
                unit="micros",
                window="total",
                window_start=0,
                percent=80,
                limit=100,
                value=80,
            )
        )

    # -- whom it happens to ---------------------------------------------------------------------

    def any_organization(self) -> str:
        return self.random.choice(self.organizations)

    def any_key(self) -> str:
        return self.random.choice(self.keys)
