"""docs/verdicts.md has every code, with its status, in the order in which they are decided."""

import re

from keyledger_language import STATUS_OF_CODE
from tests.docs.examples import ROOT

PAGE = (ROOT / "docs" / "verdicts.md").read_text()


def test_every_code_is_documented_with_its_status_and_no_other() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)

    assert {code: int(status) for code, status in documented} == STATUS_OF_CODE
