"""What a campaign starts ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded.process import running
from tests.e2e.ledgers import until

_CAMPAIGN = """
import os, sys, time
from pathlib import Path
from tests.campaigns.cluster import Program

nowhere = {"KEYLEDGER_DATABASE_URL": "postgresql://127.0.0.1:9/x", "KEYLEDGER_NATS_URL": "nats://127.0.0.1:9"}
program = Program("worker", ["project"], {**os.environ, **nowhere}, Path(sys.argv[1]))
program.start()
while b"postgresql.awaited" not in program.output.read_bytes():
    time.sleep(0.05)
print(program.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CAMPAIGN, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_campaign_that_is_killed_leaves_no_program(
    campaign: subprocess.Popen[str], how: signal.Signals
) -> None:
    assert campaign.stdout is not None
    program = int(campaign.stdout.readline())
    assert running(program)
    os.kill(campaign.pid, how)
    campaign.wait()

    until(lambda: not running(program), seconds=5)
