"""What users of the library can rely on: its names, its types, its size."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import keyledger_edge
from keyledger_edge import EdgeError, errors


def test_all_public_names_exist_and_nothing_else_is_public() -> None:
    public = {name for name in vars(keyledger_edge) if not name.startswith("_")}
    incidental = {"errors", "testing", "VERSION"}

    assert public - incidental == set(keyledger_edge.__all__) - {"__version__"}
    assert len(keyledger_edge.__all__) == len(set(keyledger_edge.__all__))


def test_private_modules_say_so() -> None:
    folder = Path(keyledger_edge.__file__).parent

    assert (folder / "py.typed").exists()
    assert {one.stem for one in folder.glob("*.py") if not one.stem.startswith("_")} == {
        "errors",
        "testing",
    }


def test_every_error_is_an_edge_error_with_a_code_and_stands_in_the_tree() -> None:
    kinds: list[type[EdgeError]] = [one for one in vars(errors).values() if isinstance(one, type)]

    assert all(issubclass(one, EdgeError) for one in kinds)
    assert len({one.code for one in kinds}) == len(kinds)
    assert errors.__doc__ is not None
    assert all(one.__name__ in errors.__doc__ for one in kinds)


def test_the_version_is_the_distributions() -> None:
    assert keyledger_edge.__version__ == metadata.version("keyledger-edge")


def test_importing_it_starts_nothing_and_imports_no_nats() -> None:
    script = (
        "import sys, threading, keyledger_edge; "
        "assert threading.active_count() == 1; "
        "assert not [m for m in sys.modules if m.split('.')[0] in {'nats', 'nkeys', 'ssl_not'}]"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


def test_only_one_module_imports_nats() -> None:
    folder = Path(keyledger_edge.__file__).parent
    users = [
        one.name
        for one in folder.glob("*.py")
        if re.search(r"^\s*(import|from) nats\b", one.read_text("utf-8"), re.MULTILINE)
    ]

    assert users == ["_nats.py"]
