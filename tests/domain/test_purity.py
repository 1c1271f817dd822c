"""What an interpreter loads that imports the domain or the language: nothing that does I/O."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"domain": ROOT / "domain", "keyledger_language": ROOT / "services/language/keyledger_language"}
REACHES_THE_WORLD = {
    "asyncio", "concurrent", "http", "logging", "multiprocessing", "queue", "select", "selectors", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "urllib",
}  # fmt: skip
OTHERS = {"msgspec", "typing_extensions"}
"""msgspec imports typing_extensions if it is installed."""
PROGRAM = """
import importlib, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({one.partition(".")[0] for one in set(sys.modules) - before}))
"""


def modules_of(package: str) -> list[str]:
    folder = PACKAGES[package]
    parts = (path.relative_to(folder.parent).with_suffix("").parts for path in sorted(folder.rglob("*.py")))
    return [".".join(one).removesuffix(".__init__") for one in parts]


def loaded_by(*modules: str, cwd: Path = ROOT) -> set[str]:
    """The packages that an interpreter has after these imports, but did not have when it started."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def too_much(loaded: set[str], own: set[str]) -> set[str]:
    """What no pure module loads: modules that do I/O, and third-party packages."""
    return loaded & REACHES_THE_WORLD | loaded - set(sys.stdlib_module_names) - OTHERS - own


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_looked_at(package: str) -> None:
    modules = modules_of(package)

    assert {"domain": "domain.decisions.charging", "keyledger_language": "keyledger_language.judging"}[
        package
    ] in modules
    assert len(modules) == len(set(modules)) > 10


def test_the_domain_loads_the_language_and_nothing_that_reaches_the_world() -> None:
    assert too_much(loaded_by(*modules_of("domain")), {"domain", "keyledger_language"}) == set()


def test_the_language_loads_msgspec_and_nothing_that_reaches_the_world() -> None:
    assert too_much(loaded_by(*modules_of("keyledger_language")), {"keyledger_language"}) == set()


@pytest.mark.parametrize("name", sorted(REACHES_THE_WORLD))
def test_a_module_that_imports_more_is_noticed(name: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(f"from domain import evolve\n\nimport {name}\n", "utf-8")

    assert name in too_much(loaded_by("planted", cwd=tmp_path), {"planted", "domain", "keyledger_language"})


def test_a_module_that_imports_the_edge_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("from keyledger_edge import Scopes\n", "utf-8")

    found = too_much(loaded_by("planted", cwd=tmp_path), {"planted", "keyledger_language"})

    assert {"keyledger_edge", "asyncio", "ssl"} <= found
