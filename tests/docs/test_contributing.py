"""CONTRIBUTING answers a stranger's questions with files that are there, and hold what it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.examples import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
QUESTIONS = re.findall(r"^\| ([^|]+\?) \| `([^`|]+)` \| `([^`|]+)` \|$", PAGE, re.MULTILINE)


def defined_in(source: str) -> set[str]:
    """The names that a module defines, and those of its classes as `Class.name`."""
    return set(_names(ast.parse(source).body, ""))


def _names(body: list[ast.stmt], inside: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inside + node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node.body, f"{inside}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (inside + one.id for one in targets if isinstance(one, ast.Name))


def test_there_are_twenty_questions_and_each_has_a_file_of_its_own() -> None:
    assert len(QUESTIONS) == 20
    assert len({question for question, _, _ in QUESTIONS}) == len({file for _, file, _ in QUESTIONS}) == 20


@pytest.mark.parametrize("question, file, name", QUESTIONS, ids=[question for question, _, _ in QUESTIONS])
def test_the_file_that_answers_a_question_holds_what_is_named(question: str, file: str, name: str) -> None:
    path = ROOT / file

    assert path.is_file(), f"{question} {file} is gone"
    assert name in defined_in(path.read_text()), f"{question} {file} holds no {name}"


def test_a_name_that_is_only_imported_answers_nothing() -> None:
    source = "from x import Here\nTABLE: int = 1\nclass A:\n    def b(self) -> None: ...\nother = Here()\n"

    assert defined_in(source) == {"TABLE", "A", "A.b", "other"}
