"""`keyledger demo`: every promise of the day is kept, and nothing is left behind."""

import json
import subprocess
import tempfile
from pathlib import Path

from services.demo.story import ClientAnswer, Story
from tests.e2e.ledgers import PROGRAM

LEAST_PROMISES = 50


def test_a_day_at_five_gateways_is_as_promised() -> None:
    before = {*Path(tempfile.gettempdir()).glob("keyledger-demo-*")}

    done = subprocess.run([*PROGRAM, "demo", "--json"], capture_output=True, text=True, check=False)
    story = json.loads(done.stdout)

    assert [line for line in story["lines"] if not line["kept"]] == []
    assert done.returncode == 0, done.stderr
    assert story["kept"] >= LEAST_PROMISES
    assert before == {*Path(tempfile.gettempdir()).glob("keyledger-demo-*")}


def test_a_broken_promise_is_told_and_counted() -> None:
    told: list[str] = []
    story = Story(told.append)
    story.chapter("A gateway", "which promises")
    story.answered("a call", ClientAnswer(200, "valid", {}, {}), 401, "revoked")
    story.answered("another", ClientAnswer(200, "valid", {}, {}), 200)

    assert [line.sentence for line in story.failures] == ["401 revoked                 a call"]
    assert any("NOT" in line and "promised (401, 'revoked')" in line for line in told)
