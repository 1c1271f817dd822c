"""Adopting many keys from a file."""

import hashlib
import json

import pytest

from services.cli.faults import CommandError
from services.cli.files import read_entries
from tests.cli.conftest import Shop
from tests.cli.terminals import on_terminal


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def written(shop: Shop, name: str, text: str) -> str:
    (shop.ledger.folder / name).write_text(text)
    return name


HINT = "kl_live_...x7Qd"
TWO = (
    '{{"name": "first", "sha256": "{a}", "hint": "kl_live_...x7Qd", "tags": ["x", "y"]}}',
    '{{"name": "second", "sha256": "{b}", "hint": "kl_live_...x7Qd"}}',
)
ROWS = f"name,sha256,hint,tags\nfirst,{{a}},{HINT},x;y\nsecond,{{b}},{HINT},\n"
FORMS = {
    "csv": ROWS,
    "ndjson": "\n\n".join(TWO) + "\n",
    "json": f"[{','.join(TWO)}]",
    "csv with a byte order mark": f"\ufeff{ROWS}",
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_file_is_read(shop: Shop, form: str) -> None:
    text = FORMS[form].format(a=digest(f"{form} 1"), b=digest(f"{form} 2"))
    file = written(shop, "keys.any", text)

    done = shop.ledger.ask("keys", "import", file, "--org", "Acme")

    assert (done["imported"], done["failed"]) == (2, 0)
    assert [one["key"]["tags"] for one in done["results"]] == [["x", "y"], []]


def test_more_than_one_batch_is_sent_and_the_same_file_again_adopts_nothing_twice(shop: Shop) -> None:
    lines = (
        json.dumps({"name": f"Many {n}", "sha256": digest(f"many {n}"), "hint": HINT}) for n in range(1_001)
    )
    file = written(shop, "many.ndjson", "\n".join(lines))

    shown = on_terminal(shop.ledger, ["keys", "import", file, "--org", "Acme", "--json"], stdout_piped=True)
    first = json.loads(shown.piped)
    assert (shown.exit_code, first["imported"], first["failed"]) == (0, 1_001, 0)
    assert "Importing" in shown.terminal

    again = shop.ledger.run("keys", "import", file, "--org", "Acme")
    assert again.returncode == 1
    assert again.stdout.rstrip().endswith("0 imported, 1,001 not.")
    assert "... and 951 more; --json lists all." in again.stdout
    assert len(again.stdout.splitlines()) < 60


def test_a_file_from_standard_input(shop: Shop) -> None:
    done = shop.ledger.run(
        "keys",
        "import",
        "-",
        "--org",
        "Acme",
        "--json",
        given=f"name,sha256,hint\nPiped,{digest('piped')},{HINT}\n",
    )

    assert json.loads(done.stdout)["imported"] == 1, done.stderr


WRONG = [
    ('{"name": "a"}\n{"name": \n', "line 2"),
    ("name,sha256\na,b,c\n", "line 2 has more fields than the heading"),
    ("[1]", "Expected `object`"),
]


@pytest.mark.parametrize("text,sentence", WRONG)
def test_a_file_that_cannot_be_read_says_where(shop: Shop, text: str, sentence: str) -> None:
    file = shop.ledger.folder / written(shop, "wrong", text)

    with pytest.raises(CommandError, match="is neither CSV with a heading nor JSON") as refused:
        read_entries(file)

    assert refused.value.exit_code == 2
    assert sentence in str(refused.value)
