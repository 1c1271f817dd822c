"""Of all reasons against a use, the first in the contract's order is the answer."""

from collections.abc import Callable
from typing import Any

import pytest

from domain import commands as c
from keyledger_language import RateLimit, Tenant, Use
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from tests.domain.given import Shop, fingerprint_of

ORDER = (
    "revoked",
    "expired",
    "rotated",
    "disabled",
    "organization_suspended",
    "ip_denied",
    "permission_denied",
    "project_denied",
    "model_denied",
    "tenant_denied",
    "rate_limited",
    "api_key_quota_exceeded",
    "project_quota_exceeded",
    "organization_quota_exceeded",
    "billing_shortfall",
)


class Trouble(Shop):
    """A key that may have every reason to be refused at once."""

    def __init__(self) -> None:
        super().__init__(balance=0)
        self.project_id = self.project(self.customer.id).id
        self.ip = "10.0.0.1"
        self.permission = self.model = self.tenant = "fine"
        self.secret = fingerprint_of("open sesame")
        # There is no reason to refuse a use until a test adds one.
        self.ask(c.SetWalletTerms(organization_id=self.customer.id, credit_limit_micros=None))
        self.ask(
            c.EditScopes(
                key_id=self.shopper.id,
                scopes=c.NewScopes(
                    permissions=("fine",), projects=(self.project_id,), models=("fine",), tenants=("fine",)
                ),
            )
        )
        self.change(allowed_ips=("10.0.0.0/8",))

    def cause(self, code: str) -> None:
        causes: dict[str, Callable[[], object]] = {
            "revoked": lambda: self.ask(c.RevokeKey(key_id=self.shopper.id)),
            "expired": self._expire,
            "rotated": self._rotate,
            "disabled": lambda: self.ask(c.DisableKey(key_id=self.shopper.id)),
            "organization_suspended": self._suspend,
            "ip_denied": lambda: setattr(self, "ip", "192.0.2.1"),
            "permission_denied": lambda: setattr(self, "permission", "other"),
            "project_denied": self._archive,
            "model_denied": lambda: setattr(self, "model", "other"),
            "tenant_denied": lambda: setattr(self, "tenant", "other"),
            "rate_limited": self._slow_down,
            "api_key_quota_exceeded": lambda: self.change(quotas=(_none_left(),)),
            "project_quota_exceeded": self._limit_project,
            "organization_quota_exceeded": self._limit_organization,
            "billing_shortfall": self._empty_wallet,
        }
        causes[code]()

    def _expire(self) -> None:
        self.change(expires_at=self.now + SECOND)
        self.wait(1)

    def _rotate(self) -> None:
        self.ask(c.RotateKey(key_id=self.shopper.id, fingerprint=fingerprint_of("next"), hint=""))

    def _suspend(self) -> None:
        self.ask(c.SuspendOrganization(organization_id=self.customer.id))

    def _archive(self) -> None:
        self.ask(c.ArchiveProject(organization_id=self.customer.id, project_id=self.project_id))

    def _slow_down(self) -> None:
        self.change(rate_limits=(RateLimit(name="one", limit=1, window_seconds=3_600),))
        self.limiter.take(self.shopper.id, self.state.keys[self.shopper.id].rate_limits, None)

    def _limit_project(self) -> None:
        self.ask(
            c.ChangeProject(
                organization_id=self.customer.id, project_id=self.project_id, quotas=(_none_left(),)
            )
        )

    def _limit_organization(self) -> None:
        self.ask(c.ChangeOrganization(organization_id=self.customer.id, quotas=(_none_left(),)))

    def _empty_wallet(self) -> None:
        self.ask(c.SetWalletTerms(organization_id=self.customer.id, credit_limit_micros=0))

    def verdict(self) -> str:
        use = Use(
            permissions=(self.permission,),
            project_id=self.project_id,
            model=self.model,
            tenant=Tenant(user_id=self.tenant),
            ip=self.ip,
        )
        fields: dict[str, Any] = {
            "use": use,
            "count_rate": True,
            "key_id": None,
            "fingerprint": self.secret,
            "keyspace_id": self.gateway.id,
        }
        return self.ask(self.charging(1, **fields)).code  # type: ignore[no-any-return]


def _none_left() -> Quota:
    return Quota(unit="micros", window="month", limit=0)


# What makes the key unchangeable comes last.
CAUSED_IN = (*ORDER[5:], "organization_suspended", "disabled", "rotated", "expired", "revoked")


def test_without_a_trouble_the_use_is_valid() -> None:
    assert Trouble().verdict() == "valid"


@pytest.mark.parametrize("code", ORDER)
def test_one_trouble_alone_is_its_own_verdict(code: str) -> None:
    trouble = Trouble()
    trouble.cause(code)

    assert trouble.verdict() == code


@pytest.mark.parametrize("first", ORDER)
def test_of_it_and_all_that_come_behind_it_the_first_is_the_verdict(first: str) -> None:
    trouble = Trouble()
    for code in CAUSED_IN:
        if ORDER.index(code) >= ORDER.index(first):
            trouble.cause(code)

    assert trouble.verdict() == first
