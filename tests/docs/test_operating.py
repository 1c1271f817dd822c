"""The pages for operators name every setting, command and exit code, and nothing that is gone."""

import re

from services.settings import PREFIX, Settings
from tests.docs.cli_reference import PAGE, reference
from tests.docs.examples import ROOT

OPERATING = (ROOT / "docs" / "operating.md").read_text()


def test_the_reference_of_the_command_line_is_the_commands_own_help() -> None:
    assert PAGE.read_text() == reference(), "run python -m tests.docs.cli_reference"


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    settings = {PREFIX + name.upper() for name in Settings.__struct_fields__}
    rows = dict(re.findall(r"^\| `(KEYLEDGER_\w+)` \| ([^|]*?) \|", OPERATING, re.MULTILINE))

    assert set(rows) == settings
    for name, default in Settings().shown().items():
        if default not in {"(unset)", "(none)"}:
            assert default in rows[PREFIX + name.upper()].replace("./", ""), name


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
