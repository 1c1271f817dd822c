"""The command line against a ledger that it started itself: real PostgreSQL, real NATS, real processes."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.cli.databases import running_servers
from services.cli.first_root_key import new_root_secret
from services.settings import Settings
from tests.e2e.ledgers import Place, place, stop, until


@pytest.fixture(scope="module")
def ledger() -> Iterator[Place]:
    """One ledger for the module, in a path with a space."""
    with place("a folder") as here:
        here.start(by_itself=True)
        yield here


@pytest.fixture(scope="module")
def acme(ledger: Place) -> str:
    """An organization with 25.00, in a ledger with one keyspace."""
    ledger.ask("keyspaces", "create", "main")
    made = ledger.ask("orgs", "create", "Acme", "--external-id", "cus_42")
    ledger.ask("wallet", "credit", "Acme", "25.00", "--reference", "invoice-7")
    return str(made["id"])


def make(ledger: Place, name: str, *more: str) -> tuple[str, str]:
    made = ledger.ask("keys", "create", name, "--org", "Acme", *more)
    return made["key"]["id"], made["secret"]


def verdict(ledger: Place, secret: str, *more: str) -> dict[str, Any]:
    done = ledger.run("verify", "-", *more, "--json", given=secret)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["valid"] else 1)
    return found


def test_the_first_start_leaves_a_root_key_that_only_its_owner_can_read(ledger: Place) -> None:
    file = Path(ledger.told["root_key_file"])

    assert ledger.folder / "data" / "root-key" == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("kl_root_")


def test_a_keys_life(ledger: Place, acme: str) -> None:
    key, secret = make(ledger, "Checkout", "--quota", "money/month=10.00@80", "--tag", "web")
    charged = verdict(ledger, secret, "--cost", "0.25", "--request-id", "order-1")
    assert (acme, 250_000) == (charged["organization_id"], charged["charge"]["amount_micros"])

    ledger.ask("keys", "scopes", key, "models=gpt-5")
    assert verdict(ledger, secret, "--model", "claude")["code"] == "model_denied"

    rotated = ledger.ask("keys", "rotate", key, "--yes", "--reason", "test")["secret"]
    assert verdict(ledger, secret)["code"] == "rotated"
    assert verdict(ledger, rotated)["code"] == "valid"

    ledger.ask("keys", "disable", key, "--yes")
    assert verdict(ledger, rotated)["code"] == "disabled"
    ledger.ask("keys", "enable", key)
    assert verdict(ledger, rotated)["code"] == "valid"

    revoked = ledger.ask("keys", "revoke", key, "--yes", "--reason", "the end")
    assert revoked["fence"]["held"]
    assert verdict(ledger, rotated)["code"] == "revoked"

    history = ledger.ask("keys", "history", key)["items"]
    changes = ["KeyCreated", "ScopesEdited", "KeyRotated", "KeyDisabled", "KeyEnabled", "KeyRevoked"]
    assert [one["action"] for one in history if one["action"] in changes] == changes
    assert ledger.ask("keys", "usage", key)["items"][0]["charged_micros"] == 250_000


def test_people_get_tables_and_the_secret_once(ledger: Place, acme: str) -> None:
    made = ledger.run("keys", "create", "Seen", "--org", "Acme")
    secret = next(word for word in made.stdout.split() if word.startswith("kl_live_"))

    assert "shown only once" in made.stdout
    assert made.returncode == 0
    listed = ledger.run("keys", "list", "--org", acme)
    assert "Seen" in listed.stdout
    assert secret not in listed.stdout
    assert ledger.run("keys", "list", "--org", acme, "--json").stdout.count(secret) == 0


def test_money_is_shown_in_units_and_kept_in_micros(ledger: Place, acme: str) -> None:
    ledger.ask("orgs", "create", "Moneybags")
    first = ledger.ask("wallet", "credit", "Moneybags", "0.000001", "--reference", "a")
    again = ledger.ask("wallet", "credit", "Moneybags", "0.000001", "--reference", "a")

    assert (first["wallet"]["balance_micros"], first["replayed"], again["replayed"]) == (1, False, True)
    assert "0.000001 USD" in ledger.run("wallet", "show", "Moneybags").stdout
    terms = ledger.ask("wallet", "terms", "Moneybags", "--postpaid", "--alert-below", "5")
    assert (terms["credit_limit_micros"], terms["alert_below_micros"]) == (None, 5_000_000)
    assert [line["kind"] for line in ledger.ask("wallet", "statement", "Moneybags")["items"]] == ["deposit"]


def test_projects_and_plans(ledger: Place, acme: str) -> None:
    project = ledger.ask("projects", "create", acme, "search", "--quota", "requests/day=2")["id"]
    ledger.ask("plans", "create", "pro", "--model", "gpt-5", "--multiplier", "1.25")
    _, secret = make(ledger, "Planned", "--plan", "pro", "--scope", f"projects={project}")

    charged = verdict(ledger, secret, "--model", "gpt-5", "--project", project, "--cost", "1")
    assert charged["charge"]["amount_micros"] == 1_250_000
    explained = ledger.ask("explain", "-", "--model", "claude", given=secret)
    assert explained["code"] == "model_denied"
    ledger.ask("projects", "archive", acme, "search", "--yes")
    assert verdict(ledger, secret, "--model", "gpt-5", "--project", project)["code"] == "project_denied"


def test_keys_from_elsewhere_are_adopted_without_their_secret(ledger: Place, acme: str) -> None:
    old = "kl_live_" + "0" * 30 + "000000"
    (ledger.folder / "keys.csv").write_text(
        "name,sha256,hint,tags\nOne," + "ab" * 32 + ",kl_live_...x7Qd,a;b\nTwo,nonsense,,\n"
    )
    many = ledger.run("keys", "import", "keys.csv", "--org", "Acme", "--json")
    one = ledger.run(
        "keys", "import", "--name", "Old", "--org", "Acme", "--secret-stdin", "--json", given=old
    )

    assert (many.returncode, json.loads(many.stdout)["imported"], json.loads(many.stdout)["failed"]) == (
        1,
        1,
        1,
    )
    assert json.loads(one.stdout)["imported"] == 1, one.stderr
    assert old not in one.stdout


def test_a_leak_is_answered_in_one_command(ledger: Place, acme: str) -> None:
    key, secret = make(ledger, "Leaky")
    verdict(ledger, secret, "--cost", "1.50", "--request-id", "mischief")
    before = ledger.ask("wallet", "show", "Acme")["balance_micros"]
    evidence = ledger.folder / "leak.json"

    ledger.ask("leak", "-", "--since", "-1h", "--refund", "--evidence", str(evidence), "--yes", given=secret)

    assert verdict(ledger, secret)["code"] == "revoked"
    assert before + 1_500_000 == ledger.ask("wallet", "show", "Acme")["balance_micros"]
    kept = json.loads(evidence.read_text())
    assert (key, "mischief") == (kept["leak"]["key"]["id"], kept["uses"][0]["request_id"])
    assert secret not in evidence.read_text()
    assert stat.S_IMODE(evidence.stat().st_mode) == 0o600


def test_a_leak_is_answered_by_the_fingerprint_too(ledger: Place, acme: str) -> None:
    _, secret = make(ledger, "Leaky by digest")

    ledger.ask("leak", "--sha256", hashlib.sha256(secret.encode()).hexdigest(), "--yes")

    assert verdict(ledger, secret)["code"] == "revoked"
    unknown = hashlib.sha256(b"nobody knows this one").hexdigest()
    assert ledger.run("leak", "--sha256", unknown, "--yes").stdout.startswith("No key of this ledger")


REFUSALS = [
    (["keys", "show", "key_01JD0000000000000000000000"], 4, "not_found"),
    (["keys", "create", "X", "--org", "Nobody"], 4, "not_found"),
    (["orgs", "create", ""], 1, "invalid_request"),
    (["keys", "revoke", "key_01JD0000000000000000000000"], 2, "not_confirmed"),
    (["keys", "list", "--url", "http://127.0.0.1:9"], 6, "ledger_unreachable"),
    (["keys", "list", "--key-file", "/nowhere"], 3, "refused"),
    (["keys", "frobnicate"], 2, "usage"),
]


@pytest.mark.parametrize("words,exit_code,code", REFUSALS)
def test_a_refusal_has_an_exit_code_and_a_problem(
    ledger: Place, acme: str, words: list[str], exit_code: int, code: str
) -> None:
    done = ledger.run(*words, "--json")

    assert (exit_code, code, "") == (done.returncode, json.loads(done.stderr)["code"], done.stdout)


def test_a_key_that_may_not_is_told_which_permission_is_missing(ledger: Place, acme: str) -> None:
    reader = ledger.ask("keys", "create", "reader", "--root", "--permission", "keys:read")["secret"]

    done = ledger.run("orgs", "create", "Mine", KEYLEDGER_API_KEY=reader)

    assert done.returncode == 3
    assert "permission_denied" in done.stderr
    assert ledger.run("keys", "list", KEYLEDGER_API_KEY=reader).returncode == 0


def test_a_second_instance_is_refused_in_a_sentence(ledger: Place) -> None:
    done = ledger.run("up")

    assert done.returncode == 1
    assert f"Another keyledger is using {ledger.folder / 'data'}, pid " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_busy_port_is_refused_in_a_sentence() -> None:
    with socket.socket() as taken, place() as here:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = here.run("up", "--port", str(taken.getsockname()[1]))

        assert done.returncode == 2
        assert "is in use by another program" in done.stderr


def test_the_doctor_finds_nothing_broken(ledger: Place, acme: str) -> None:
    done = ledger.run("doctor", "--json")
    found = json.loads(done.stdout)

    assert done.returncode == 0
    assert found["healthy"]
    looked_at = {one["what"] for one in found["findings"]}
    assert looked_at >= {
        "API",
        "PostgreSQL",
        "durability",
        "migrations",
        "owner",
        "projections",
        "NATS",
        "clock",
    }


def test_the_books_are_clean_and_a_damaged_row_is_found(ledger: Place, acme: str) -> None:
    make(ledger, "Damaged")
    assert ledger.ask("reconcile")["differences"] == []
    assert ledger.ask("rebuild", "--check")["clean"]
    database = running_servers(Settings(data_dir=ledger.folder / "data")).database_url
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE projections.keys SET name = 'Forged' WHERE name = 'Damaged'")

    damaged = ledger.run("rebuild", "--check", "--json")
    tables = {one["table"]: one["different"] for one in json.loads(damaged.stdout)["tables"]}

    assert damaged.returncode == 1
    assert {name: count for name, count in tables.items() if count} == {"keys": 1}
    assert ledger.ask("rebuild")["rebuilt"]
    assert ledger.ask("rebuild", "--check")["clean"]


def test_a_worker_that_dies_is_started_again(ledger: Place, acme: str) -> None:
    def workers() -> list[int]:
        children = Path(f"/proc/{ledger.processes[0].pid}/task/{ledger.processes[0].pid}/children")
        found = []
        for pid in children.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended in between
                if b"project" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return found

    (first,) = workers()
    os.kill(first, signal.SIGKILL)

    until(lambda: workers() not in ([], [first]))
    key, _ = make(ledger, "After the worker")
    until(lambda: key in ledger.run("keys", "list", "--q", "After the worker").stdout)


def test_a_database_that_dies_is_started_again(ledger: Place, acme: str) -> None:
    postmaster = int((ledger.folder / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)

    until(lambda: ledger.run("orgs", "create", "After the database").returncode == 0, seconds=60)


def test_term_stops_everything_and_the_next_start_has_the_data() -> None:
    with place() as here:
        first = here.start()
        made = here.ask("orgs", "create", "Lasting")
        assert stop(first) == 0
        assert here.left() == []

        here.start()
        assert here.told["root_key_file"] is None
        assert here.ask("orgs", "show", "Lasting")["id"] == made["id"]


def test_ctrl_c_stops_everything() -> None:
    with place() as here:
        assert stop(here.start(), signal.SIGINT) == 0
        assert here.left() == []


def test_a_kill_leaves_no_process_and_loses_nothing() -> None:
    with place() as here:
        first = here.start()
        made = here.ask("orgs", "create", "Surviving")
        stop(first, signal.SIGKILL)
        until(lambda: here.left() == [])

        here.start()
        assert here.ask("orgs", "show", "Surviving")["id"] == made["id"]
        assert here.ask("reconcile")["differences"] == []


def test_servers_of_ones_own_are_used_and_must_be_migrated(database: str, nats_url: str) -> None:
    own = {"KEYLEDGER_DATABASE_URL": database, "KEYLEDGER_NATS_URL": nats_url}
    with place(**own) as here:
        unready = here.run("serve")
        assert unready.returncode == 1
        assert "run `keyledger migrate`" in unready.stderr
        assert len(here.ask("migrate")["applied"]) > 0
        assert here.ask("migrate")["applied"] == []
        here.ask("bootstrap", "--file", "root-key")
        assert not here.ask("bootstrap")["made"]
        here.environment["KEYLEDGER_API_KEY"] = (here.folder / "root-key").read_text()

        here.start("serve")
        here.ask("orgs", "create", "Own servers")
        here.start("serve", "--no-worker")
        assert here.ask("orgs", "show", "Own servers")["name"] == "Own servers"
        assert not (here.folder / "data" / "postgres").exists()


def test_a_given_root_key_is_the_root_key() -> None:
    with place() as source:
        source.start()
        key = (source.folder / "data" / "root-key").read_text()
    with place(KEYLEDGER_ROOT_KEY=key, KEYLEDGER_API_KEY=key) as here:
        here.start()

        assert here.told["root_key_file"] is None
        assert here.ask("orgs", "list")["items"] == []


def test_serve_without_servers_says_what_to_set() -> None:
    with place() as here:
        done = here.run("serve")

        assert done.returncode == 2
        assert "needs KEYLEDGER_DATABASE_URL and KEYLEDGER_NATS_URL" in done.stderr


def test_a_wrong_setting_is_told_before_anything_starts() -> None:
    with place(KEYLEDGER_LEASE_MS="soon") as here:
        done = here.run("up")

        assert done.returncode == 2
        assert "KEYLEDGER_LEASE_MS must be a whole number from 100 to 60000." in done.stderr
        assert not (here.folder / "data").exists()


def test_what_is_no_root_key_never_becomes_one() -> None:
    with place(KEYLEDGER_ROOT_KEY="abc") as here:
        done = here.run("up")

        assert done.returncode == 2
        assert "KEYLEDGER_ROOT_KEY must be a complete root key" in done.stderr
        assert not (here.folder / "data").exists()


def test_a_sidecar_answers_on_a_unix_socket(ledger: Place, acme: str) -> None:
    _, secret = make(ledger, "Near")
    edge_key = ledger.ask("keys", "create", "edge", "--root", "--permission", "edges:connect")["secret"]
    path = ledger.folder / "edge.sock"
    ledger.environment["KEYLEDGER_EDGE_KEY"] = edge_key
    process = ledger.start("edge", "--listen", f"unix:{path}")

    def asked() -> dict[str, Any] | None:
        body = json.dumps({"secret": secret})
        request = ["curl", "-s", "--unix-socket", str(path), "-d", body, "http://edge/v1/verify"]
        answer = subprocess.run(request, capture_output=True, text=True, check=False).stdout
        found: dict[str, Any] = json.loads(answer or "{}")
        return found if found.get("valid") else None

    assert until(asked)["name"] == "Near"
    assert len(ledger.ask("edges")["items"]) == 1
    assert stop(process) == 0


def test_a_sidecar_that_others_could_reach_is_refused(ledger: Place) -> None:
    done = ledger.run("edge", "--listen", "0.0.0.0:0", KEYLEDGER_EDGE_KEY=new_root_secret())

    assert done.returncode == 2
    assert "--anyone" in done.stderr


def test_docs_and_schema_are_served(ledger: Place) -> None:
    for path in ("/docs", "/schema/openapi.json", "/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(ledger.environment["KEYLEDGER_URL"] + path) as answer:
            assert answer.status == 200
