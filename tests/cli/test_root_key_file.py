"""The root key's file: found, and refused when others may read it."""

import stat
from pathlib import Path

import pytest

from services.cli.faults import NOT_ALLOWED, CommandError
from services.cli.root_key import find_root_key, read_private, write_private
from services.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_private(tmp_path / "root-key", "kl_root_1")
    return tmp_path / "root-key"


def test_it_is_written_for_its_owner_alone(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["root-key"]


def test_it_is_found_in_the_data_folder(file: Path) -> None:
    assert find_root_key(Settings(data_dir=file.parent)) == "kl_root_1"


def test_the_environment_wins_over_the_file_and_an_option_over_both(file: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=file.parent, api_key="kl_root_2")
    write_private(tmp_path / "other", "kl_root_3\n")

    assert find_root_key(settings) == "kl_root_2"
    assert find_root_key(settings, tmp_path / "other") == "kl_root_3"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)

    with pytest.raises(CommandError, match="is open to others") as refused:
        read_private(file)

    assert refused.value.exit_code == NOT_ALLOWED
    assert "kl_root_1" not in str(refused.value)


def test_no_key_at_all_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="set KEYLEDGER_API_KEY"):
        find_root_key(Settings(data_dir=tmp_path))
