"""The checker of the edges' campaign sees what it is there for."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.edges.book import Book, Control, Figure
from tests.campaigns.edges.checker import Death, Findings, check

MS = 1_000_000
COMMITTED, FENCED, ANSWERED = 1_000 * MS, 1_300 * MS, 1_310 * MS


def checked(
    arrived: int, *, fenced: int = FENCED, answered: int | None = ANSWERED, resumed: bool = False
) -> Findings:
    death = Death("revoke", range(1, 2), answered, COMMITTED, fenced, resumed)
    return check([death], [("edge-0-0", [9_999 * MS, arrived])], bound_ns=1_010 * MS, clock_error_ns=1)


def test_an_accept_between_commit_and_fence_is_stale_and_allowed() -> None:
    found = checked(COMMITTED + 200 * MS)

    assert (found.lines, found.worst_ns, found.stale) == ([], 200 * MS, 1)


def test_an_accept_before_the_commit_is_not_stale() -> None:
    found = checked(COMMITTED - 1)

    assert (found.lines, found.worst_ns, found.stale) == ([], 0, 0)


def test_an_accept_after_the_receipt_is_a_violation_though_nobody_was_answered_yet() -> None:
    assert checked(FENCED + 2).after_the_fence == 1
    assert checked(FENCED + 1).after_the_fence == 0
    assert checked(FENCED + 2, answered=None).after_the_fence == 1


def test_an_accept_after_the_answer_is_a_violation_whatever_the_receipt_says() -> None:
    assert checked(ANSWERED + 1, fenced=5_000 * MS).after_the_fence == 1


def test_an_accept_behind_the_bound_is_a_violation_though_no_fence_holds_yet() -> None:
    bound, long = COMMITTED + 1_010 * MS + 1, 5_000 * MS

    assert checked(bound, fenced=long, answered=long).too_late == 0
    assert checked(bound + 1, fenced=long, answered=long).too_late == 1


def test_where_the_owner_died_in_between_the_commit_is_not_known_to_have_been_then() -> None:
    found = checked(COMMITTED + 2_000 * MS, fenced=5_000 * MS, answered=5_000 * MS, resumed=True)

    assert (found.too_late, found.worst_resumed_ns) == (0, 2_000 * MS)


def test_a_book_outlives_its_writer(tmp_path: Path) -> None:
    book = Book(tmp_path / "book", 3)
    book.arrivals[2] = 7
    book.figures[Figure.ACCEPTS] += 1
    book.close()
    found = Book.read(tmp_path / "book")

    assert [*found.arrivals] == [0, 0, 7]
    assert found.figures[Figure.ACCEPTS] == 1
    found.close()


def test_the_control_is_shared(tmp_path: Path) -> None:
    one, other = Control(tmp_path / "control"), Control(tmp_path / "control")
    one.window = (3, 9)
    one.stop()

    assert (other.window, other.stopping) == ((3, 9), True)
    one.close()
    other.close()
