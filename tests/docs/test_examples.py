"""The README's tour and the tutorial do what they say, word for word."""

import pytest

from tests.docs.examples import ROOT, run_document, without_changing

DOCUMENTS = ["README.md", "docs/tutorial.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_example_prints_what_the_document_says(name: str) -> None:
    examples = run_document(ROOT / name)

    assert len(examples) >= 5
    for example in examples:
        if example.documented is None:
            assert example.exit_code == 0, example
        else:
            assert without_changing(example.printed) == without_changing(example.documented)


def test_what_changes_from_run_to_run_is_left_out_and_nothing_else() -> None:
    text = 'key_01M7Y3NA32QD53GZ8NTENV9T33 at "2026-11-21T03:52:10.979030Z", 0-42: 42 of 50'

    assert without_changing(text) == 'key_ID at "TIME", 0-N: 42 of 50'
