"""How the code is built, in figures: `python -m tests.bench.structure [folder of another checkout]`.

Prints what an import of the event types loads, the names that two classes or two files have, what
`Ledger` consists of, and the median and the ninetieth percentile of the lines of files and functions.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

FOLDERS: Final = ("domain", "projections", "infra", "services")
LEDGER: Final = "services/ledger/ledger.py"
_LOADED: Final = """
import sys
before = set(sys.modules)
try:
    import keyledger_language.events
except ImportError:  # of an older checkout
    import domain.events
found = set(sys.modules) - before
print(len(found), *sorted(found & {"asyncio", "ssl", "socket", "nats", "logging"}))
"""


def main(root: Path) -> None:
    """Print all of it."""
    trees = parsed(root)
    files = list(trees)
    print(f"importing the event types loads {loaded(root)}")
    show("class names with two meanings", twice(classes(root, trees)))
    show("file names with two meanings", twice((path.name, str(path.relative_to(root))) for path in files))
    [ledger] = [one for one in classes_in(trees[root / LEDGER]) if one.name == "Ledger"]
    print(
        f"Ledger: {len(methods(ledger))} methods and properties, {len(collaborators(ledger))} attributes of"
        f" its own, {lines_of(ledger)} lines"
    )
    print(f"files: {spread(len(path.read_text().splitlines()) for path in files)}")
    print(f"functions: {spread(lines_of(one) for tree in trees.values() for one in functions(tree))}")


def parsed(root: Path) -> dict[Path, ast.Module]:
    """The files of the product."""
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return {path: ast.parse(path.read_text()) for path in files}


def loaded(root: Path) -> str:
    """How many modules, and which of those that do I/O."""
    python = root / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", _LOADED], cwd=root, capture_output=True, text=True, check=True)
    count, *doing_io = done.stdout.split()
    return f"{count} modules, of those that do I/O: {', '.join(doing_io) or 'none'}"


def classes_in(tree: ast.Module) -> list[ast.ClassDef]:
    """Those of a module itself that others may name."""
    return [one for one in tree.body if isinstance(one, ast.ClassDef) and not one.name.startswith("_")]


def classes(root: Path, trees: dict[Path, ast.Module]) -> Iterator[tuple[str, str]]:
    """Each class with its file."""
    for path, tree in trees.items():
        for one in classes_in(tree):
            yield one.name, str(path.relative_to(root))


def twice(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that more than one has."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in named:
        if name != "__init__.py":
            places[name].append(place)
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def methods(found: ast.ClassDef) -> list[ast.stmt]:
    """Properties included."""
    return [one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]


def collaborators(found: ast.ClassDef) -> set[str]:
    """What its methods put into `self`."""
    return {
        one.attr
        for one in ast.walk(found)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All of a module, methods and inner ones too."""
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            yield one


def lines_of(found: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From its first line to its last."""
    return (found.end_lineno or found.lineno) - found.lineno + 1


def spread(lines: Iterable[int]) -> str:
    """Count, median and ninetieth percentile."""
    found = sorted(lines)
    return f"{len(found)}, lines: median {statistics.median(found):.0f}, p90 {found[len(found) * 9 // 10]}"


def show(what: str, found: dict[str, list[str]]) -> None:
    """The number, and each."""
    print(f"{what}: {len(found)}")
    for name, places in found.items():
        print(f"  {name}: {', '.join(places)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
