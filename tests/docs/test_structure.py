"""One word, one meaning: what a class is called says which one it is."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

from tests.bench.structure import classes, parsed, twice
from tests.docs.examples import ROOT

_MAY: Final = {"Ledger"}
"""`keyledger_edge.Ledger` is a public name: what a verifier asks of the ledger."""


def test_no_two_classes_have_the_same_name() -> None:
    assert set(twice(classes(ROOT, parsed(ROOT)))) == _MAY


def test_a_second_class_of_a_name_is_found(tmp_path: Path) -> None:
    trees = {tmp_path / f"{name}.py": ast.parse("class Reply: ...\nclass _Own: ...") for name in "ab"}

    assert twice(classes(tmp_path, trees)) == {"Reply": ["a.py", "b.py"]}
