"""What all users of the shared language can rely on: its names, its types, its size."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

import keyledger_edge
import keyledger_language

FOLDER = Path(keyledger_language.__file__).parent


def test_all_public_names_exist_and_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(keyledger_language).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert public == set(keyledger_language.__all__)
    assert len(keyledger_language.__all__) == len(set(keyledger_language.__all__))


def test_it_is_typed_and_needs_msgspec_only() -> None:
    assert (FOLDER / "py.typed").exists()
    assert [re.split(r"\W", one)[0] for one in metadata.requires("keyledger-language") or ()] == ["msgspec"]


def test_ledger_edge_and_language_are_of_one_version() -> None:
    version = metadata.version("keyledger-language")

    assert {metadata.version("keyledger"), metadata.version("keyledger-edge")} == {version}
    for user in ("keyledger", "keyledger-edge"):
        assert f"keyledger-language=={version}" in (metadata.requires(user) or ())


def test_what_the_edge_says_of_the_language_is_the_language() -> None:
    said = set(keyledger_edge.__all__) & set(keyledger_language.__all__)

    assert {"Scopes", "Use", "judge", "VALID"} <= said
    assert all(getattr(keyledger_edge, one) is getattr(keyledger_language, one) for one in said)
