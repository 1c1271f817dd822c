"""A FastAPI application in a fresh virtual environment, with nothing of ours but the edge's wheel."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_edge import Running, ledger

__all__ = ["ledger"]

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = {"keyledger-edge", "msgspec", "nats-py", "pip", "setuptools"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and first with nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    _run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "-o",
        str(folder),
        ".",
        cwd=ROOT / "services/edge",
    )
    [wheel] = folder.glob("*.whl")
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    _install(python, str(wheel))
    return python


def _install(python: Path, *packages: str) -> None:
    """From a file or from the package registry; skips where that cannot be reached, but not in CI."""
    command = [str(python), "-m", "pip", "install", "-q", "--no-compile", "--retries", "1", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    unreachable = any(words in done.stderr for words in ("establish a new connection", "name resolution"))
    if done.returncode and unreachable and os.environ.get("CI") != "true":
        pytest.skip("the package registry cannot be reached, and the edge needs packages from it")
    assert done.returncode == 0, done.stderr


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_installed_is_small(environment: Path) -> None:
    listed = json.loads(_run(str(environment), "-m", "pip", "list", "--format", "json"))
    names = {one["name"] for one in listed}
    size = sum(
        one.stat().st_size
        for package in ("keyledger_edge", "msgspec", "nats")
        for one in environment.parents[1].glob(f"lib/*/site-packages/{package}/**/*")
        if one.is_file() and one.suffix != ".pyc"
    )

    print(f"installed: {sorted(names)}, {size / 1024:.0f} KiB")
    assert names <= SMALL
    assert size < 3 * 1024 * 1024


@pytest.fixture
def gateway(environment: Path, ledger: Running, tmp_path: Path) -> Iterator[str]:
    """The application of docs/edge.md, on a real uvicorn."""
    _install(environment, "fastapi", "uvicorn")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/edge.md").read_text("utf-8"), re.DOTALL)
    [block] = [one for one in blocks if "from fastapi" in one]
    (tmp_path / "app.py").write_text(block.replace("http://127.0.0.1:8700", ledger.url), "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(environment), "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "KEYLEDGER_EDGE_KEY": ledger.root_key},
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_install_run_revoke_refused(gateway: str, ledger: Running) -> None:
    shop = {"name": "fresh", "preset": "default", "prefix": f"f{time.time_ns()}_"}
    keyspace = _ask(f"{ledger.url}/v1/keyspaces", ledger.root_key, shop)[1]
    organization = _ask(f"{ledger.url}/v1/organizations", ledger.root_key, {"name": "fresh"})[1]
    made = _ask(
        f"{ledger.url}/v1/keys",
        ledger.root_key,
        {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "k"},
    )[1]

    _wait_until_it_answers(gateway, made["secret"])
    assert _ask(f"{gateway}/whoami", made["secret"])[1]["key"] == made["key"]["id"]

    revoked = _ask(f"{ledger.url}/v1/keys/{made['key']['id']}/revoke", ledger.root_key, {})[1]

    assert revoked["fence"]["held"]
    status, problem = _ask(f"{gateway}/whoami", made["secret"])
    assert (status, problem["code"]) == (401, "revoked")


def _wait_until_it_answers(gateway: str, secret: str) -> None:
    # Nothing of what it imports is compiled yet: alone, that takes seconds.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if _ask(f"{gateway}/whoami", secret)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the application never let a good key through")


def _ask(url: str, key: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)
