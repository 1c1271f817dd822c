"""Tables are as wide as the terminal, hold whole words, and have colours only where somebody sees them."""

import pytest

from services.cli.tables import print_table
from tests.cli.conftest import Shop
from tests.cli.terminals import on_terminal

ID = "key_01M81AF35XBYC2TQ6NMTVMNW13"
COLUMNS = ("id", "name", "+amount", "?note")
ROWS = [(ID, "a name of some words", "1,250.00", "left-out-first"), (ID, "short", "2.00", "-")]


def shown(width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_table(COLUMNS, ROWS, width)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_with_room_for_all_each_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(90, capsys) == [
        f"{'id':<30}  {'name':<20}    amount  note",
        f"{ID}  a name of some words  1,250.00  left-out-first",
        f"{ID}  short                     2.00  -",
    ]


# The longest word of each column, and the gap behind it.
LEAST = (30 + 2) + (5 + 2) + (8 + 2)
LEAST_WITH_NOTE = LEAST + (14 + 2)


def test_what_may_be_left_out_is_left_out_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert any("left-out-first" in line for line in shown(LEAST_WITH_NOTE, capsys))
    assert not any("left-out-first" in line for line in shown(LEAST_WITH_NOTE - 1, capsys))


def test_where_not_even_that_fits_each_row_is_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(LEAST, capsys)[0].split() == ["id", "name", "amount"]
    assert shown(LEAST - 1, capsys) == [
        f"id      {ID}",
        "name    a name of some words",
        "amount  1,250.00",
        "",
        f"id      {ID}",
        "name    short",
        "amount  2.00",
    ]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_list_of_keys_fits_the_terminal_and_cuts_no_id(shop: Shop, columns: int) -> None:
    key, _ = shop.key("In a table")

    told = on_terminal(shop.ledger, ["keys", "list", "--org", "Acme"], columns=columns, NO_COLOR="1")

    assert [line for line in told.terminal.splitlines() if len(line) > columns] == []
    assert key in told.terminal


def test_colours_are_for_terminals_that_want_them(shop: Shop) -> None:
    shop.key("Coloured")

    assert "\x1b[" in on_terminal(shop.ledger, ["keys", "list"]).terminal
    assert "\x1b[" not in on_terminal(shop.ledger, ["keys", "list"], NO_COLOR="1").terminal
    assert "\x1b[" not in shop.ledger.run("keys", "list").stdout


def test_a_refusal_is_red_on_a_terminal_that_wants_it(shop: Shop) -> None:
    words = ["orgs", "show", "Nobody"]

    assert "\x1b[31m" in on_terminal(shop.ledger, words).terminal
    assert "\x1b[" not in on_terminal(shop.ledger, words, NO_COLOR="1").terminal
    assert "\x1b[" not in shop.ledger.run(*words).stderr
