"""What every test may ask for, and what a machine may lack."""

import os
import shutil

import pytest

from tests.ledger_database import ledger_database, ledger_template
from tests.replicas import replica_template, replicated_postgres
from tests.servers import database, nats_server, nats_url, postgres_server

__all__ = [
    "database",
    "ledger_database",
    "ledger_template",
    "nats_server",
    "nats_url",
    "postgres_server",
    "replica_template",
    "replicated_postgres",
]

PROGRAMS = ("nginx", "chromium")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for program in PROGRAMS:
        if item.get_closest_marker(program) is None or _found(program):
            continue
        reason = f"{program} is not installed: apt-get install {program}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _found(program: str) -> bool:
    # Debian keeps nginx in a folder that is not on an ordinary user's path.
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])) is not None
