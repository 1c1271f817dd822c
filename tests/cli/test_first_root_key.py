"""The first root key: one, whenever the process is killed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from domain.keyspaces import ROOT_KEYSPACE_ID
from keyledger_language import fingerprint
from services.bootstrap import Assembled
from services.cli.first_root_key import ensure_root_key
from services.cli.root_key import write_private
from services.settings import Settings


class Ledger:
    """Just enough of a ledger: it owns its partition and remembers root keys."""

    def __init__(self) -> None:
        self.owner, self.stands_by = True, False
        self.books = SimpleNamespace(keys={})
        self.facts = self
        self.known: dict[bytes, str] = {}
        self.killed = False

    async def bootstrap(self, secret: str) -> None:
        if self.killed:
            raise ConnectionError
        self.known[fingerprint(secret)] = secret
        self.books.keys[secret] = SimpleNamespace(keyspace_id=ROOT_KEYSPACE_ID)

    def find(self, digest: bytes) -> Any:
        return self.known.get(digest)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def started(ledger: Ledger, folder: Path, **settings: Any) -> Path | None:
    assembled = cast(Assembled, SimpleNamespace(ledger=ledger))
    return await ensure_root_key(assembled, Settings(data_dir=folder, **settings))


async def test_the_first_start_makes_one_and_the_next_does_not(ledger: Ledger, tmp_path: Path) -> None:
    file = await started(ledger, tmp_path)

    assert tmp_path / "root-key" == file
    assert [(tmp_path / "root-key").read_text()] == [*ledger.known.values()]
    assert await started(ledger, tmp_path) is None
    assert [one.name for one in tmp_path.iterdir()] == ["root-key"]


async def test_a_kill_before_the_ledger_heard_of_it_makes_the_same_one(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.killed = True
    with pytest.raises(ConnectionError):
        await started(ledger, tmp_path)
    written = (tmp_path / "root-key.new").read_text()
    ledger.killed = False

    assert tmp_path / "root-key" == await started(ledger, tmp_path)
    assert written == (tmp_path / "root-key").read_text()


async def test_a_kill_after_the_ledger_heard_of_it_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    write_private(tmp_path / "root-key.new", "kl_root_x")
    await ledger.bootstrap("kl_root_x")

    assert tmp_path / "root-key" == await started(ledger, tmp_path)
    assert (tmp_path / "root-key").read_text() == "kl_root_x"


async def test_a_candidate_that_never_became_one_goes_away(ledger: Ledger, tmp_path: Path) -> None:
    write_private(tmp_path / "root-key.new", "kl_root_x")
    await ledger.bootstrap("kl_root_other")

    assert await started(ledger, tmp_path) is None
    assert [*tmp_path.iterdir()] == []


async def test_a_given_root_key_is_used_and_written_nowhere(ledger: Ledger, tmp_path: Path) -> None:
    assert await started(ledger, tmp_path, root_key="kl_root_given") is None
    assert [*ledger.known.values()] == ["kl_root_given"]
    assert [*tmp_path.iterdir()] == []


async def test_a_process_that_stands_by_makes_none(ledger: Ledger, tmp_path: Path) -> None:
    ledger.owner, ledger.stands_by = False, True

    assert await started(ledger, tmp_path) is None
    assert ledger.known == {}
