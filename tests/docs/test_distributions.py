"""Four distributions are built here, all of one version, and none takes more of the others than it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = {
    "keyledger": ROOT,
    "keyledger-edge": ROOT / "services/edge",
    "keyledger-language": ROOT / "services/language",
    "keyledger-reading": ROOT / "services/reading",
}
OURS: Final[dict[str, set[str]]] = {
    "keyledger": {"keyledger-edge", "keyledger-language", "keyledger-reading"},
    "keyledger-edge": {"keyledger-language"},
    "keyledger-language": set(),
    "keyledger-reading": {"keyledger-language"},
}


def project(name: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text("utf-8"))["project"]
    assert found["name"] == name
    return found


def test_every_folder_with_a_project_is_one_of_them() -> None:
    folders = {path.parent for path in (ROOT / "services").glob("*/pyproject.toml")}

    assert folders == set(FOLDERS.values()) - {ROOT}


@pytest.mark.parametrize("name", FOLDERS)
def test_it_has_the_version_of_all_and_pins_the_others_to_it(name: str) -> None:
    version = project("keyledger")["version"]
    pins = {
        found[1]: found[2]
        for one in project(name)["dependencies"]
        if (found := re.match(r"(keyledger-\w+)(.*)", one))
    }

    assert project(name)["version"] == version
    assert pins == dict.fromkeys(OURS[name], f"=={version}")
    assert project(name)["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", sorted(OURS["keyledger"]))
def test_who_installs_it_gets_its_types(name: str) -> None:
    assert (FOLDERS[name] / name.replace("-", "_") / "py.typed").exists()


def test_the_makefile_builds_the_wheels_of_all() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\nwheel:")[2].partition("\n\n")[0]
    built = re.findall(r"--outdir dist (\S+)", recipe)

    assert {ROOT / one for one in built} == set(FOLDERS.values())
