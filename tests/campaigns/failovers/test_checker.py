"""A checker that misses a violation across a loss proves nothing: each kind is made up, and found."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.campaigns.checker import Kind, Operation, Recorded
from tests.campaigns.failovers.checker import Judgement, Loss, judge

ORG, KEY, LATER = "org_1", "key_1", "key_later"
LOSS = Loss(head=10, ended=100.0, began=110.0, settled=120.0)


def done(kind: Kind, name: str, position: int, at: float, *, key: str = KEY, amount: int = 0) -> Operation:
    """Asked at a moment, and answered half a second later."""
    return Operation(
        kind, name, ORG if kind not in {"create", "revoke"} else "", key, amount, invoked=at,
        completed=at + 0.5, code="valid", position=position, thing=key if kind == "create" else None,
    )  # fmt: skip


def looked(key: str, at: float, *, edge: bool = True) -> Operation:
    """Somebody verified this key, and it was valid."""
    return Operation(
        "verify", f"look-{at}", ORG, key, invoked=at, completed=at + 0.1, code="valid", at_edge=edge
    )


def charged(name: str, position: int, balance: int) -> Recorded:
    return Recorded(position, "charge", name, ORG, KEY, 1, f"chg_{name}", balance, 0, 0, 1)


class History:
    """Charges 2 to 14 of which 11 to 14 are lost, with a key and two revocations; then 11 to 13 anew."""

    def __init__(self) -> None:
        self.losses = [LOSS]
        deposit = Recorded(1, "deposit", "top-up", ORG, "", 1_000, "", 1_000, 0, 0, -1_000)
        self.log = [deposit, *(charged(f"c{n}", n, 1_001 - n) for n in range(2, 9))]
        self.log.append(Recorded(9, "create", "early", ORG, "key_early", 0, "key_early", 0, 0, 0, 0))
        self.log.append(Recorded(10, "revoke", "key_early", ORG, "key_early", 0, "key_early", 0, 0, 0, 0))
        self.log += [charged(f"n{n}", n, 1_003 - n) for n in range(11, 14)]
        self.operations = [
            done("deposit", "top-up", 1, 1.0, amount=1_000),
            *(done("charge", f"c{n}", n, n, amount=1) for n in range(2, 9)),
            done("create", "early", 9, 9.0, key="key_early"),
            done("revoke", "key_early", 10, 10.0, key="key_early"),
            done("charge", "c11", 11, 11.0, amount=1),
            done("create", "later", 12, 12.0, key=LATER),
            done("revoke", KEY, 13, 13.0),
            looked(LATER, 20.0),
            looked(KEY, 115.0),
            *(done("charge", f"n{n}", n, 120.0 + n, amount=1) for n in range(11, 14)),
        ]

    def judged(self) -> Judgement:
        return judge(self.operations, self.log, len(self.log), self.losses)

    def change(self, name: str, **to: object) -> None:
        at = next(n for n, one in enumerate(self.operations) if one.name == name)
        self.operations[at] = replace(self.operations[at], **to)  # type: ignore[arg-type]  # a test's lies


@pytest.fixture
def history() -> History:
    return History()


def test_a_true_history_with_a_loss_is_clean(history: History) -> None:
    judged = history.judged()

    assert judged.clean, str(judged)
    assert (judged.lost, judged.open, judged.findings.acknowledged) == ([3], {}, 13)


def lose_more_than_was_beyond(history: History) -> None:
    history.log = [one for one in history.log if one.name != "c8"]


def keep_what_was_beyond(history: History) -> None:
    history.log.append(charged("c11", 14, 989))


def lose_what_came_after(history: History) -> None:
    history.log.pop()


def double_across_the_loss(history: History) -> None:
    history.log.append(charged("c3", 14, 989))


def accept_a_key_that_only_the_lost_history_knew(history: History) -> None:
    history.operations.append(looked(LATER, 121.0))


def accept_it_at_a_ledger(history: History) -> None:
    history.operations.append(looked(LATER, 121.0, edge=False))


def accept_what_was_revoked_before_the_head(history: History) -> None:
    history.operations.append(looked("key_early", 200.0))


def accept_before_the_loss_what_was_revoked_and_lost(history: History) -> None:
    history.operations.append(looked(KEY, 50.0))


def accept_after_a_fence(history: History) -> None:
    history.operations.append(looked("key_early", 10.6))


def accept_long_after_a_revocation_without_a_fence(history: History) -> None:
    history.change("key_early", fenced=False)
    history.operations.append(looked("key_early", 11.6))


def charge_what_was_refused(history: History) -> None:
    history.change("n12", code="billing_shortfall", position=None, head=11)


def charge_after_the_loss_what_was_refused_in_its_only_try(history: History) -> None:
    history.change("n12", invoked=50.0, completed=50.5, code="billing_shortfall", position=None, head=13)


def charge_at_last_what_was_called_off_and_refused(history: History) -> None:
    history.change("n12", code="billing_shortfall", position=None, head=11, tries=2)


def lose_what_was_asked_before_and_answered_long_after(history: History) -> None:
    history.change("c11", completed=112.0)


def refuse_as_revoked_what_was_written_by_a_revocation_after_the_answer(history: History) -> None:
    history.change("c8", completed=12.5, code="revoked", position=None, head=12)


def charge_in_the_new_history_what_the_lost_one_refused_as_revoked(history: History) -> None:
    history.change("n12", invoked=13.6, completed=14.0, code="revoked", position=None, head=13)


def refuse_as_revoked_after_the_loss_and_charge(history: History) -> None:
    history.change("n12", code="revoked", position=None, head=11)


def overspend(history: History) -> None:
    history.log[-1] = history.log[-1]._replace(reserved=10**6)


def acknowledge_after_the_loss_out_of_the_lost_history(history: History) -> None:
    history.operations.append(done("charge", "c14", 14, 111.0, amount=1))


@pytest.mark.parametrize(
    "lie",
    [
        lose_more_than_was_beyond, keep_what_was_beyond, lose_what_came_after, double_across_the_loss,
        accept_a_key_that_only_the_lost_history_knew, accept_it_at_a_ledger,
        accept_what_was_revoked_before_the_head, accept_before_the_loss_what_was_revoked_and_lost,
        accept_after_a_fence, accept_long_after_a_revocation_without_a_fence, charge_what_was_refused,
        charge_after_the_loss_what_was_refused_in_its_only_try, overspend,
        lose_what_was_asked_before_and_answered_long_after, charge_at_last_what_was_called_off_and_refused,
        acknowledge_after_the_loss_out_of_the_lost_history,
        refuse_as_revoked_what_was_written_by_a_revocation_after_the_answer,
        charge_in_the_new_history_what_the_lost_one_refused_as_revoked,
        refuse_as_revoked_after_the_loss_and_charge,
    ],
)  # fmt: skip
def test_every_violation_is_found(history: History, lie: Callable[[History], None]) -> None:
    lie(history)

    assert not history.judged().clean


def accept_what_was_revoked_and_lost(history: History) -> None:
    history.operations.append(looked(KEY, 200.0))


def accept_a_lost_key_until_the_operator_is_done(history: History) -> None:
    history.operations.append(looked(LATER, 119.0))


def accept_within_the_lease_what_was_revoked_without_a_fence(history: History) -> None:
    history.change("key_early", fenced=False)
    history.operations.append(looked("key_early", 11.2))


def ask_again_for_what_was_lost(history: History) -> None:
    history.log.append(charged("c11", 14, 989))
    history.operations.append(done("charge", "c11", 14, 150.0, amount=1))


def charge_through_an_edge_what_another_edge_refused(history: History) -> None:
    history.change("n12", code="billing_shortfall", position=None, head=11, tries=2, gives_up=False)


def be_answered_while_history_ended(history: History) -> None:
    history.change("c11", completed=105.0)


def repeat_without_its_answer_what_a_lost_revocation_then_refuses(history: History) -> None:
    history.change("c8", completed=14.0, code="revoked", position=None, head=13)


@pytest.mark.parametrize(
    "truth",
    [
        accept_what_was_revoked_and_lost, accept_a_lost_key_until_the_operator_is_done,
        accept_within_the_lease_what_was_revoked_without_a_fence, ask_again_for_what_was_lost,
        charge_through_an_edge_what_another_edge_refused, be_answered_while_history_ended,
        repeat_without_its_answer_what_a_lost_revocation_then_refuses,
    ],
)  # fmt: skip
def test_what_a_loss_allows_is_allowed(history: History, truth: Callable[[History], None]) -> None:
    truth(history)

    assert history.judged().clean, str(history.judged())


def test_what_two_losses_took_is_counted_for_each(history: History) -> None:
    history.losses.append(Loss(head=11, ended=300.0, began=310.0, settled=320.0))
    history.log = [one for one in history.log if one.position <= 11]

    judged = history.judged()

    assert judged.clean, str(judged)
    assert judged.lost == [3, 2]
