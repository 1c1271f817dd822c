"""A fresh virtual environment with the wheels of who reads the log: the documented projection runs there."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.test_edge import Running, ledger
from tests.e2e.test_fresh_install import ROOT, SMALLEST, ask, install, installed, made, wheel

__all__ = ["ledger"]

pytestmark = pytest.mark.slow

READING = SMALLEST | {
    "eventsourcing", "keyledger-reading", "psycopg", "psycopg-binary", "psycopg-pool", "typing_extensions",
}  # fmt: skip


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel of who reads the log and the language's."""
    folder = tmp_path_factory.mktemp("reading")
    python = made(folder)
    install(python, *(str(wheel(source, folder)) for source in ("services/language", "services/reading")))
    return python


def test_the_documented_projection_runs_with_nothing_of_the_server(
    reading: Path, ledger: Running, tmp_path: Path
) -> None:
    page = (ROOT / "docs/projections.md").read_text("utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [settings] = re.findall(r"```bash\n(export .*?)```", page, re.DOTALL)
    (tmp_path / "spend.py").write_text(program, "utf-8")
    (tmp_path / ".keyledger").symlink_to(ledger.folder / "data")
    _charged(ledger, 1_250_000)

    path = f"{reading.parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-euc", settings.replace("python ", "exec python ")], cwd=tmp_path, env={"PATH": path}
    )
    try:
        spent = _until_spent(tmp_path / "spend.db")
    finally:
        process.terminate()
        process.wait(30)

    assert spent >= 1_250_000
    assert {"keyledger-reading", "eventsourcing"} <= installed(reading) <= READING
    assert list(reading.parents[1].glob("lib/*/site-packages/keyledger_reading/py.typed"))


def _charged(ledger: Running, micros: int) -> None:
    """Some key has just spent so much."""
    shop = {"name": "spender", "preset": "default", "prefix": f"s{time.time_ns()}_"}
    keyspace = ask(f"{ledger.url}/v1/keyspaces", ledger.root_key, shop)[1]
    organization = ask(f"{ledger.url}/v1/organizations", ledger.root_key, {"name": "spender"})[1]
    wallet = f"{ledger.url}/v1/organizations/{organization['id']}/wallet/credits"
    ask(wallet, ledger.root_key, {"amount_micros": micros, "reference": "first"})
    names = {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "k"}
    key_id = ask(f"{ledger.url}/v1/keys", ledger.root_key, names)[1]["key"]["id"]
    charge = {"key_id": key_id, "request_id": "one", "amount_micros": micros, "model": "gpt-large"}
    status, _ = ask(f"{ledger.url}/v1/charges", ledger.root_key, charge)
    assert status == 201


def _until_spent(file: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if file.exists():
            with closing(sqlite3.connect(file)) as connection:
                try:
                    rows = connection.execute("SELECT micros FROM spend WHERE model = 'gpt-large'").fetchall()
                except sqlite3.OperationalError:
                    continue
            if rows:
                return sum(micros for (micros,) in rows)
    raise AssertionError("the projection counted nothing")
