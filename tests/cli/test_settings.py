"""Settings: from variables, from a file, and in sentences when they are wrong."""

from pathlib import Path

import pytest

from services.cli.first_root_key import new_root_secret
from services.settings import Settings, SettingsError, load_settings, unknown_variables

MASTER_KEY = "5a" * 32
ROOT_KEY = new_root_secret()


def test_nothing_set_is_one_machine_with_embedded_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Settings() == load_settings({})


def test_a_variable_wins_over_the_file_and_an_option_over_both(tmp_path: Path) -> None:
    file = tmp_path / "keyledger.toml"
    file.write_text('port = 9000\nhost = "0.0.0.0"\ntrusted_proxies = ["10.0.0.0/8", "unix"]\n')

    settings = load_settings({"KEYLEDGER_PORT": "9001"}, config=file, overrides={"host": "::1", "port": None})

    assert (settings.host, settings.port, settings.trusted_proxies) == ("::1", 9001, ("10.0.0.0/8", "unix"))


def test_the_file_in_the_current_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keyledger.toml").write_text("lease_ms = 2000\n")
    monkeypatch.chdir(tmp_path)

    assert load_settings({}).lease_ms == 2000


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load_settings({"KEYLEDGER_PORT": ""}).port == 8700


def test_another_port_is_also_where_the_command_line_looks() -> None:
    assert load_settings({"KEYLEDGER_PORT": "9001"}).url == "http://127.0.0.1:9001"
    assert load_settings({"KEYLEDGER_PORT": "9001", "KEYLEDGER_URL": "http://a:1/"}).url == "http://a:1"


REFUSED = [
    ("KEYLEDGER_PORT", "eighty", "KEYLEDGER_PORT must be a whole number from 0 to 65535."),
    ("KEYLEDGER_PORT", "65536", "KEYLEDGER_PORT must be a whole number from 0 to 65535."),
    ("KEYLEDGER_LEASE_MS", "0", "KEYLEDGER_LEASE_MS must be a whole number from 100 to 60000."),
    ("KEYLEDGER_DRIFT", "much", "KEYLEDGER_DRIFT must be a number from 0 to 0.2."),
    ("KEYLEDGER_LOG_LEVEL", "loud", "KEYLEDGER_LOG_LEVEL must be one of debug, info, warning, error."),
    ("KEYLEDGER_MASTER_KEY", "short", "KEYLEDGER_MASTER_KEY must be 32 bytes as hex or base64."),
    (
        "KEYLEDGER_TRUSTED_PROXIES",
        "10.0.0.300",
        "lists 10.0.0.300, which is not a network such as 10.0.0.0/8.",
    ),
    ("KEYLEDGER_URL", "ftp://x", "KEYLEDGER_URL must be an http or https address"),
    ("KEYLEDGER_ADVERTISE_URL", "http://u:p@a:1", "must be an address without user, password, query"),
    ("KEYLEDGER_ADVERTISE_URL", "http://a:1/?x=1", "must be an address without user, password, query"),
    ("KEYLEDGER_URL", "http://a:1#x", "must be an address without user, password, query or fragment."),
    (
        "KEYLEDGER_DATABASE_URL",
        "somewhere",
        "KEYLEDGER_DATABASE_URL must be an address such as postgresql://",
    ),
    ("KEYLEDGER_NATS_URL", "somewhere", "KEYLEDGER_NATS_URL must be an address such as nats://"),
    ("KEYLEDGER_PING_MS", "501", "KEYLEDGER_PING_MS must be at most half of KEYLEDGER_LEASE_MS (1000)"),
    ("KEYLEDGER_CONFIG", "/nowhere.toml", "KEYLEDGER_CONFIG names /nowhere.toml, which does not exist."),
]


@pytest.mark.parametrize("name,value,sentence", REFUSED)
def test_a_wrong_setting_is_named_in_a_sentence(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({name: value})

    assert sentence in str(refused.value)


def test_a_name_in_the_file_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("prot = 9000\n")

    with pytest.raises(SettingsError, match="sets prot, which is not a setting"):
        load_settings({}, config=file)


def test_a_mistyped_variable_is_found() -> None:
    assert unknown_variables({"KEYLEDGER_PROT": "1", "KEYLEDGER_PORT": "1", "HOME": "/"}) == [
        "KEYLEDGER_PROT"
    ]


def test_no_secret_is_shown() -> None:
    secrets = {
        "KEYLEDGER_DATABASE_URL": "postgresql://ledger:pass-1@db/ledger",
        "KEYLEDGER_NATS_URL": "nats://ledger:pass-2@nats",
        "KEYLEDGER_EDGE_NATS_URL": "nats://edge:pass-3@nats",
        "KEYLEDGER_ROOT_KEY": ROOT_KEY,
        "KEYLEDGER_API_KEY": "kl_root_pass-5",
        "KEYLEDGER_EDGE_KEY": ROOT_KEY,
        "KEYLEDGER_MASTER_KEY": MASTER_KEY,
    }
    shown = repr(load_settings(secrets))

    assert "pass-" not in shown
    assert ROOT_KEY not in shown
    assert "5a5a" not in shown
    assert "database_url=(set)" in shown


def test_a_wrong_secret_is_not_shown_either() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"KEYLEDGER_MASTER_KEY": "hunter2"})

    assert "hunter2" not in str(refused.value)


CUT = slice(0, -1)
NOT_ROOT_KEYS = {
    "a word": "abc",
    "too short by far": "kl_root_abc",
    "cut off": ROOT_KEY[CUT],
    "too long": ROOT_KEY + "0",
    "a wrong checksum": ROOT_KEY[CUT] + ("1" if ROOT_KEY.endswith("0") else "0"),
    "another prefix": ROOT_KEY.replace("kl_root_", "kl_live_"),
    "hexadecimal": "kl_root_" + "5a" * 18,
}


# A name for each: the values are drawn anew by each process that collects the tests.
@pytest.mark.parametrize("name", ["KEYLEDGER_ROOT_KEY", "KEYLEDGER_EDGE_KEY"])
@pytest.mark.parametrize("value", NOT_ROOT_KEYS.values(), ids=NOT_ROOT_KEYS)
def test_what_is_no_root_key_cannot_become_one(value: str, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({name: value})

    sentence = str(refused.value)
    assert sentence.startswith(f"{name} must be a complete root key (kl_root_ + 30 base62 + CRC32")
    assert value not in sentence


def test_a_whole_root_key_is_taken() -> None:
    assert load_settings({"KEYLEDGER_ROOT_KEY": f" {ROOT_KEY}\n"}).root_key == ROOT_KEY


def test_another_process_gets_the_same_settings_by_its_environment() -> None:
    settings = load_settings({
        "KEYLEDGER_MASTER_KEY": MASTER_KEY,
        "KEYLEDGER_TRUSTED_PROXIES": "10.0.0.0/8,unix",
        "KEYLEDGER_DATABASE_URL": "host=/run/x user=ledger dbname=ledger",
        "KEYLEDGER_DRIFT": "0.02",
    })  # fmt: skip

    assert settings == load_settings(settings.environment())


@pytest.mark.parametrize(
    "text,switched",
    [("true", True), ("TRUE", True), ("1", True), ("on", True), ("false", False), ("no", False)],
)
def test_a_switch_is_read_as_people_write_it_and_handed_on(text: str, switched: bool) -> None:  # noqa: FBT001
    settings = load_settings({"KEYLEDGER_LOG_GRANTED": text})

    assert settings.log_granted is switched
    assert load_settings(settings.environment()).log_granted is switched


def test_a_switch_that_says_neither_is_refused() -> None:
    with pytest.raises(SettingsError, match="KEYLEDGER_LOG_GRANTED must be true or false"):
        load_settings({"KEYLEDGER_LOG_GRANTED": "maybe"})


def test_a_switch_in_the_file_is_one_of_toml(tmp_path: Path) -> None:
    (tmp_path / "keyledger.toml").write_text("log_granted = true\n")

    assert load_settings({}, config=tmp_path / "keyledger.toml").log_granted
