"""Examples in documents: every `bash` block is run, and what it prints is held against the block after it.

`python -m tests.docs.examples README.md` writes what came into the document instead.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.e2e.ledgers import PROGRAM, Place, place

ROOT = Path(__file__).parents[2]
DOCUMENTED_PORT = "127.0.0.1:8700"

_BLOCK = re.compile(
    r"```bash\n(?P<script>.*?)```\n(?:\n```(?P<kind>text|json)\n(?P<output>.*?)```\n)?", re.DOTALL
)
_END = "--- end of block, exit code "

# What differs from run to run, and means nothing: the rest is compared letter for letter.
_CHANGING = [
    (re.compile(r"\b(ks|org|prj|plan|key|chg|rsv|evt|whk|edge)_[0-9A-HJKMNP-TV-Z]{26}\b"), r"\1_ID"),
    (re.compile(r"\b(kl_live_|kl_root_|lm_)[0-9A-Za-z]{36}\b"), r"\1SECRET"),
    (re.compile(r"\breq_[0-9a-z]+\b"), "req_ID"),
    (re.compile(r"(_|\.\.\.)[0-9A-Za-z]{4}\b(?=[\s\",])"), r"\1HINT"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?"), "TIME"),
    (re.compile(r'("waited_ms": ?)[0-9.]+'), r"\1MS"),
    (re.compile(r"held after \d+ ms"), "held after N ms"),
    (re.compile(r"within \d+ ms"), "within N ms"),
    (re.compile(r"[0-9.]+ GiB free in \S+"), "N GiB free"),
    (re.compile(r"\bin \S+/\.keyledger, under pid \d+"), "in FOLDER, under pid N"),
    (re.compile(r"\b0-\d+\b"), "0-N"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
    (re.compile(r" {2,}"), "  "),
]


class Example(NamedTuple):
    """One block, what the document says that it prints, and what it printed."""

    script: str
    documented: str | None
    printed: str
    exit_code: int


def without_changing(text: str) -> str:
    """The text with everything that differs from run to run replaced by its kind."""
    for pattern, kind in _CHANGING:
        text = pattern.sub(kind, text)
    return text.strip()


def run_document(document: Path) -> list[Example]:
    """Run all blocks of a document in one shell, beside a ledger of their own."""
    blocks = [(found["script"], found["output"]) for found in _BLOCK.finditer(document.read_text())]
    with place() as here:
        _start(here)
        script = "".join(f"{script}\necho; echo '{_END}'$?\n" for script, _ in blocks)
        port = here.told["api"].removeprefix("http://")
        done = subprocess.run(
            ["bash"],
            input=_functions() + script.replace(DOCUMENTED_PORT, port),
            capture_output=True,
            text=True,
            check=False,
            env=here.environment,
            cwd=here.folder,
            timeout=120,
        )
        printed = done.stdout.replace(port, DOCUMENTED_PORT)
    assert done.stderr == "", done.stderr
    return [
        Example(script, documented, came, exit_code)
        for (script, documented), (came, exit_code) in zip(blocks, _split(printed), strict=True)
    ]


def _start(here: Place) -> None:
    # As in the documents: data in ./.keyledger of the folder that they are read in.
    here.environment["KEYLEDGER_DATA_DIR"] = ".keyledger"
    here.start()


def _functions() -> str:
    words = " ".join(f"'{word}'" for word in PROGRAM)
    return f'keyledger() {{ {words} "$@"; }}\n'


def _split(printed: str) -> Iterator[tuple[str, int]]:
    parts = re.split(rf"\n{re.escape(_END)}(\d+)\n", printed)
    for came, exit_code in zip(parts[::2], parts[1::2], strict=False):
        yield came, int(exit_code)


def write_outputs(document: Path) -> None:
    """Replace the outputs in a document by what came."""
    examples = iter(run_document(document))

    def filled(found: re.Match[str]) -> str:
        example = next(examples)
        if found["output"] is None:
            return found[0]
        lines = "\n".join(line.rstrip() for line in example.printed.strip().splitlines())
        return f"```bash\n{found['script']}```\n\n```{found['kind']}\n{lines}\n```\n"

    document.write_text(_BLOCK.sub(filled, document.read_text()))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(ROOT / name)
