"""The ledger is complete once constructed: no code sets an attribute of it, and it never replaces a part."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from services.ledger.ledger import Ledger
from tests.ledger.world import Process, World, until

ROOT = Path(__file__).parents[2]
LEDGERS = {"ledger", "_ledger"}
"""The names of every attribute and variable that holds a ledger."""


def set_on_a_ledger(source: str) -> Iterator[str]:
    """What a source assigns to an attribute of something that is called a ledger."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if owner in LEDGERS:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_nobody_sets_an_attribute_of_a_ledger() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): told
        for path in (ROOT / "services").rglob("*.py")
        if (told := list(set_on_a_ledger(path.read_text())))
    }

    assert found == {}


def test_who_sets_one_is_seen() -> None:
    assert list(set_on_a_ledger("world.ledger.terms = Terms()"))
    assert list(set_on_a_ledger("self._ledger.on_commit: Any = print"))
    assert not list(set_on_a_ledger("ledger.standing.owner = False"))


def test_its_own_methods_set_nothing_either() -> None:
    """What changes is in its parts: the facade only refers to them."""
    source = ast.parse((ROOT / "services" / "ledger" / "ledger.py").read_text())
    (facade,) = (one for one in source.body if isinstance(one, ast.ClassDef) and one.name == Ledger.__name__)
    methods = [
        one
        for one in facade.body
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name != "__init__"
    ]

    assert methods
    for method in methods:
        stored = [one for one in ast.walk(method) if isinstance(one, ast.Attribute | ast.Subscript)]
        kept = [ast.unparse(one) for one in stored if not isinstance(one.ctx, ast.Load)]
        assert [one for one in kept if not one.startswith("desk.")] == [], method.name


def test_whatever_it_offers_is_asked_by_the_api_the_command_line_or_the_wiring() -> None:
    inside = ROOT / "services" / "ledger"
    others = [
        path.read_text() for path in (ROOT / "services").rglob("*.py") if not path.is_relative_to(inside)
    ]
    asked = {
        node.attr
        for source in others
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in LEDGERS
    }
    offered = {name for name in vars(Ledger) if not name.startswith("_")}

    assert len(offered) > 20
    assert offered - asked == set()


async def test_its_rooms_outlive_tenures_and_epochs(world: World) -> None:
    process = world.process()
    rooms = dict(vars(process.ledger))

    await process.started()
    await process.key(10)
    first, fences = process.ledger.tenure, process.ledger.fences
    world.storage.raise_epoch()
    await until(lambda: process.ledger.epoch == 2 and process.ledger.owner)

    assert rooms.keys() == vars(process.ledger).keys()
    assert all(vars(process.ledger)[name] is room for name, room in rooms.items())
    assert process.ledger.tenure != first, "what ends with a tenure is made again"
    assert process.ledger.fences is not fences


async def test_what_is_read_through_the_books_is_the_state_after_it_was_forgotten(ledger: Process) -> None:
    key = await ledger.key(10)
    books = ledger.ledger.books
    ledger.ledger._saved.forget()

    assert books.head == 0
    assert books.keys.find(key.id) is None
    await ledger.ledger._ownership.follow()
    assert books.keys.find(key.id) == key
    assert books.head == ledger.ledger.head > 0
