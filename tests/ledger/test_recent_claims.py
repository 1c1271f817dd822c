"""A retry that comes soon is found among the claims made last; memory for them is bounded."""

from domain.desk import Placed
from keyledger_language import events as e
from services.ledger.recent_claims import RecentClaims


def placed(count: int, base: int) -> list[Placed]:
    return [
        Placed("org_1", base + n, e.UsageRefunded(
            at=base + n, key_id="key_1", charge_id="chg_1", request_id=f"r{base + n}", amount_micros=1,
            refunded_micros=1, window_at=0, balance_micros=0, reserved_micros=0,
        ))
        for n in range(1, count + 1)
    ]  # fmt: skip


def name(position: int) -> bytes:
    return position.to_bytes(16, "big")


def remember(claims: RecentClaims, base: int, count: int) -> None:
    """A group of this many events, each with a claim."""
    taken = {name(base + n): base + n for n in range(1, count + 1)}
    claims.remember(base, taken, placed(count, base))


def test_a_claim_is_found_with_its_position_and_its_event() -> None:
    claims = RecentClaims()
    remember(claims, 10, 3)
    remember(claims, 13, 2)

    for position in (11, 13, 14, 15):
        found = claims.find(name(position))
        assert found is not None
        assert (found.position, found.event) == (position, placed(1, position - 1)[0].event)
    assert claims.find(name(10)) is None
    assert claims.find(name(16)) is None


def test_positions_without_a_claim_between_groups_do_no_harm() -> None:
    claims = RecentClaims()
    remember(claims, 10, 1)
    claims.remember(11, {}, placed(5, 11))
    claims.remember(16, {name(18): 18}, placed(2, 16))

    found = claims.find(name(18))

    assert found is not None
    assert found.event == placed(1, 17)[0].event
    assert claims.find(name(12)) is None


def test_the_newest_are_kept_and_the_oldest_are_forgotten_in_time() -> None:
    claims = RecentClaims(kept=10)
    for base in range(0, 100, 5):
        remember(claims, base, 5)

        assert len(claims) <= 2 * 10 + 5
        for position in range(max(1, base + 5 - 9), base + 6):
            assert claims.find(name(position)) is not None, position

    assert claims.find(name(1)) is None


def test_after_clearing_the_log_is_asked() -> None:
    claims = RecentClaims()
    remember(claims, 0, 1)

    claims.clear()

    assert claims.find(name(1)) is None
    assert len(claims) == 0
