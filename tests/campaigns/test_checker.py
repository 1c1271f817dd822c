"""A checker that misses a lie proves nothing: each kind is told to it, and it takes a million in seconds."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.campaigns.checker import Findings, Operation, Recorded, check


class History:
    """A true history of charges and top-ups, and of a key that is revoked at its end."""

    def __init__(self, count: int, seed: int = 1) -> None:
        chance = random.Random(seed)
        self.operations: list[Operation] = []
        self.log: list[Recorded] = []
        balances = {f"org_{n}": 0 for n in range(10)}
        for n in range(1, count + 1):
            organization = f"org_{n % 10}"
            deposit = balances[organization] < 100
            amount = 1_000_000 if deposit else chance.randrange(1, 50)
            spent = -amount if deposit else amount
            balances[organization] -= spent
            kind, thing = ("deposit", "") if deposit else ("charge", f"chg_{n}")
            self.log.append(
                Recorded(
                    n,
                    kind,
                    f"r{n}",
                    organization,
                    "key_1",
                    amount,
                    thing,
                    balances[organization],
                    0,
                    0,
                    spent,
                )
            )
            self.operations.append(
                Operation(
                    "deposit" if deposit else "charge",
                    f"r{n}",
                    organization,
                    "key_1",
                    amount,
                    invoked=n,
                    completed=n + 50.5,
                    code="valid",
                    thing=thing or None,
                    position=n,
                    balance=balances[organization],
                )
            )
        head = count + 1
        self.log.append(Recorded(head, "revoke", "key_1", "org_1", "key_1", 0, "key_1", 0, 0, 0, 0))
        self.operations.append(
            Operation(
                "revoke",
                "key_1",
                key_id="key_1",
                invoked=head,
                completed=head + 60.0,
                code="valid",
                position=head,
            )
        )

    def checked(self) -> Findings:
        return check(self.operations, self.log, len(self.log))


@pytest.fixture
def history() -> History:
    return History(500)


def test_a_true_history_has_no_findings(history: History) -> None:
    findings = history.checked()

    assert findings.lines == []
    assert findings.acknowledged == 501


def lose(history: History) -> None:
    history.log = [one for one in history.log if one.name != "r250"]


def double(history: History) -> None:
    last = history.log[-2]
    history.log.append(last._replace(position=last.position + 2, balance=last.balance - last.spent))


def misprice(history: History) -> None:
    history.log[250] = history.log[250]._replace(amount=history.log[250].amount + 1)


def forget_a_balance(history: History) -> None:
    history.log[250] = history.log[250]._replace(balance=history.log[250].balance + 1)


def tell_another_balance(history: History) -> None:
    history.operations[250] = replace(history.operations[250], balance=1)


def refuse_what_was_done(history: History) -> None:
    history.operations[250] = replace(history.operations[250], code="billing_shortfall")


def refuse_at_a_later_try_what_was_done(history: History) -> None:
    """As of its very position: the refusal should have been the first answer again."""
    done = history.operations[250]
    history.operations[250] = replace(done, code="billing_shortfall", tries=2, head=done.position)


def grant_after_the_only_try_was_refused(history: History) -> None:
    history.operations[250] = replace(history.operations[250], code="billing_shortfall", tries=1, head=100)


def tell_another_position(history: History) -> None:
    history.operations[250] = replace(history.operations[250], position=7)


def tell_another_thing(history: History) -> None:
    history.operations[250] = replace(history.operations[250], thing="chg_other")


def decide_on_the_past(history: History) -> None:
    history.operations[250] = replace(history.operations[250], invoked=450.0, completed=460.0)


def overspend(history: History) -> None:
    history.log[250] = history.log[250]._replace(reserved=10**9)


def charge_a_revoked_key(history: History) -> None:
    history.operations.append(
        Operation("verify", "key_1", key_id="key_1", invoked=10_000, completed=10_001, code="valid")
    )


def go_back(history: History) -> None:
    history.log[250], history.log[251] = history.log[251], history.log[250]


@pytest.mark.parametrize(
    "lie",
    [
        lose, double, misprice, forget_a_balance, tell_another_balance, refuse_what_was_done,
        refuse_at_a_later_try_what_was_done, grant_after_the_only_try_was_refused, tell_another_position,
        tell_another_thing, decide_on_the_past, overspend,
        charge_a_revoked_key, go_back,
    ],
)  # fmt: skip
def test_every_lie_is_found(history: History, lie: Callable[[History], None]) -> None:
    lie(history)

    assert history.checked().lines


def test_what_was_never_answered_may_be_there_or_not(history: History) -> None:
    unknown = replace(history.operations[250], completed=None, code=None, position=None, balance=None)
    history.operations[250] = unknown
    history.operations.append(Operation("charge", "never seen", invoked=1))

    findings = history.checked()

    assert findings.lines == []
    assert (findings.unknown, findings.unknown_written) == (2, 1)


def test_an_earlier_try_that_was_still_on_its_way_may_be_granted_after_a_later_one_was_refused(
    history: History,
) -> None:
    done = history.operations[250]
    assert done.position is not None
    late = replace(done, code="billing_shortfall", tries=2, head=done.position - 1)
    history.operations[250] = late

    findings = history.checked()

    assert findings.lines == []
    assert findings.granted_later == 1


def test_a_million_operations_are_checked_in_seconds() -> None:
    history = History(1_000_000)
    started = time.process_time()

    findings = history.checked()

    assert findings.lines == []
    assert time.process_time() - started < 20
    print(f"\n1,000,000 operations checked in {time.process_time() - started:.1f} s")
