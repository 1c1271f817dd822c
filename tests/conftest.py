"""What every test may ask for, and what a machine may lack."""

import gc
import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ledger_database import ledger_database, ledger_template
from tests.replicas import replica_template, replicated_postgres
from tests.servers import database, kept, nats_server, nats_url, postgres_server

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
LONGEST = (
    "tests/campaigns/failovers/",
    "tests/e2e/test_cli.py",
    "tests/campaigns/",
    "tests/simulation/",
    "tests/e2e/test_history.py",
    "tests/take_aways/",
    "tests/contract/test_relay.py",
    "tests/contract/",
    "tests/e2e/",
    "tests/clients/",
    "tests/docs/",
    "tests/properties/",
)
"""Where tests take long, the longest first: workers begin with these, so that they end at the same time."""

# How long an example takes is the machine's doing, which may stand still.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several workers
        items.sort(key=_turn)


def pytest_collection_finish() -> None:
    # What was imported stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """What a file's tests did not close or await fails the last of them, and not one that runs later."""
    yield
    gc.collect()


def pytest_unconfigure() -> None:
    kept.close()  # also in a worker, which ends without what is to be done at its exit


def _turn(item: pytest.Item) -> int:
    """Which of the longest it belongs to; the order within one stays."""
    return next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))


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
