"""Fresh virtual environments: the language's wheel alone; the edge's and it, with a FastAPI application."""

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
SMALLEST = {"keyledger-language", "msgspec", "pip", "setuptools"}
SMALL = SMALLEST | {"keyledger-edge", "nats-py"}


@pytest.fixture(scope="module")
def language_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the language's wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("language")
    python = made(folder)
    install(python, str(wheel("services/language", folder)))
    return python


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the edge's wheel and the language's, and first with nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    python = made(folder)
    install(python, *(str(wheel(source, folder)) for source in ("services/language", "services/edge")))
    return python


def made(folder: Path) -> Path:
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    return folder / "venv" / "bin" / "python"


def wheel(source: str, folder: Path) -> Path:
    built = folder / source
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(built), ".", cwd=ROOT / source)
    [wheel] = built.glob("*.whl")
    return wheel


def install(python: Path, *packages: str) -> None:
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


def installed(python: Path) -> set[str]:
    return {one["name"] for one in json.loads(_run(str(python), "-m", "pip", "list", "--format", "json"))}


def test_the_language_needs_msgspec_only_and_judges_a_key(language_alone: Path) -> None:
    script = """
import sys
from keyledger_language import NO_USE, KeyFacts, Scopes, judge
facts = KeyFacts(
    key_id="key_1", keyspace_id="ks_1", organization_id=None, kind="solo", generation=1, scopes=Scopes(),
    revoked=True,
)
print(judge(facts, NO_USE, 0), sorted({"asyncio", "logging", "socket", "ssl"} & set(sys.modules)))
"""
    names = installed(language_alone)

    assert {"keyledger-language", "msgspec"} <= names <= SMALLEST
    assert _run(str(language_alone), "-I", "-c", script).strip() == "revoked []"


def test_what_is_installed_is_small(environment: Path) -> None:
    names = installed(environment)
    size = sum(
        one.stat().st_size
        for package in ("keyledger_edge", "keyledger_language", "msgspec", "nats")
        for one in environment.parents[1].glob(f"lib/*/site-packages/{package}/**/*")
        if one.is_file() and one.suffix != ".pyc"
    )

    print(f"installed: {sorted(names)}, {size / 1024:.0f} KiB")
    assert names <= SMALL
    assert size < 3 * 1024 * 1024


@pytest.fixture
def gateway(environment: Path, ledger: Running, tmp_path: Path) -> Iterator[str]:
    """The application of docs/edge.md, on a real uvicorn."""
    install(environment, "fastapi", "uvicorn")
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
    keyspace = ask(f"{ledger.url}/v1/keyspaces", ledger.root_key, shop)[1]
    organization = ask(f"{ledger.url}/v1/organizations", ledger.root_key, {"name": "fresh"})[1]
    made = ask(
        f"{ledger.url}/v1/keys",
        ledger.root_key,
        {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "k"},
    )[1]

    _wait_until_it_answers(gateway, made["secret"])
    assert ask(f"{gateway}/whoami", made["secret"])[1]["key"] == made["key"]["id"]

    revoked = ask(f"{ledger.url}/v1/keys/{made['key']['id']}/revoke", ledger.root_key, {})[1]

    assert revoked["fence"]["held"]
    status, problem = ask(f"{gateway}/whoami", made["secret"])
    assert (status, problem["code"]) == (401, "revoked")


def _wait_until_it_answers(gateway: str, secret: str) -> None:
    # Nothing of what it imports is compiled yet: alone, that takes seconds.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(f"{gateway}/whoami", secret)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the application never let a good key through")


def ask(url: str, key: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)
