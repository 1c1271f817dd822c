"""The examples of docs/edge.md, as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from keyledger_edge.testing import FakeLedger
from tests.edge.asgi import call

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "edge.md").read_text("utf-8"), re.DOTALL)


def run(mark: str, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the block that holds `mark`, in front of a ledger in memory."""
    [block] = [one for one in BLOCKS if mark in one]
    monkeypatch.setenv("KEYLEDGER_EDGE_KEY", "kl_root_x")
    monkeypatch.setattr("keyledger_edge.Verifier.at", lambda *_args, **_options: ledger.verifier())
    # Litestar looks its handlers' types up in their module.
    module = ModuleType("example_of_docs_edge")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "docs/edge.md", "exec"), vars(module))
    return vars(module)


async def test_the_first_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("asyncio.run(main())", FakeLedger(), monkeypatch)
    await names["main"]()

    assert capsys.readouterr().out == "False malformed None\n"


async def test_uses_that_cost_money(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = FakeLedger()
    names = run("async def charge", ledger, monkeypatch)
    verdict = await names["charge"](ledger.verifier(), ledger.add_key(), "r1")

    assert verdict.valid
    assert ledger.charges == {"r1": 250}


@pytest.mark.parametrize("framework", ["fastapi", "litestar"])
async def test_the_frameworks(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(framework)
    ledger = FakeLedger()
    app = run(f"from {framework} import", ledger, monkeypatch)["app"]
    secret = ledger.add_key(organization_id="org_7", key_id="key_7")
    headers = {"Authorization": f"Bearer {secret}"}

    answered = await call(app, "/whoami", headers=headers)
    assert answered.json() == {"organization": "org_7", "key": "key_7"}

    ledger.revoke(secret)

    assert (await call(app, "/whoami", headers=headers)).status == 401
    assert (await call(app, "/healthz")).status == 404


def test_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("FakeLedger()", FakeLedger(), monkeypatch)
    examples = [one for name, one in names.items() if name.startswith("test_")]

    assert len(examples) == 2
    for example in examples:
        example()


def test_every_example_is_run() -> None:
    assert len(BLOCKS) == 5
