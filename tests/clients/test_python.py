"""A Python client that is generated from the API description makes the tutorial's calls, on a real ledger."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from tests.api.world import DESCRIPTION
from tests.e2e.running import Running

PACKAGE: Final = "keyledger_generated_client"

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the client's package is."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_bytes(DESCRIPTION.json)
    (folder / "config.yml").write_text("post_hooks: []\n")
    done = subprocess.run(
        [
            sys.executable, "-c", "from openapi_python_client.cli import app; app()", "generate",
            "--path", "openapi.json", "--output-path", PACKAGE, "--meta", "none", "--config", "config.yml",
            "--fail-on-warning",
        ],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def ask(generated: Path, running: Running) -> Iterator[Ask]:
    """Calls a function of the client: `ask("keys", "create_key", {...}, ...)`."""
    client = importlib.import_module(f"{PACKAGE}.client")

    def asked(tag: str, name: str, body: dict[str, Any] | None = None, *path: str, **named: Any) -> Any:
        function = importlib.import_module(f"{PACKAGE}.api.{tag}.{name}")
        if body is not None:
            annotation = function.sync.__annotations__["body"]
            kind, *_or_none = get_args(annotation) or (annotation,)
            named["body"] = kind.from_dict(body)
        return function.sync(*path, client=connected, **named)

    with client.AuthenticatedClient(base_url=running.url, token=running.root_key) as connected:
        yield asked


def test_the_tutorials_calls_run(ask: Ask, running: Running) -> None:
    shape = {"name": running.name("leadfinder"), "preset": "default", "prefix": running.prefix()}
    keyspace = ask("keyspaces", "create_keyspace", shape)
    organization = ask("organizations", "create_organization", {"name": "Acme"})
    credited = ask(
        "wallets", "add_credits", {"amount_micros": 3_000_000, "reference": running.name("invoice")},
        organization.id,
    )  # fmt: skip

    assert credited.wallet.balance_micros == 3_000_000

    limit = {"unit": "micros", "window": "month", "limit": 2_000_000, "alert_percents": [80]}
    asked = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "CRM", "quotas": [limit]}
    made = ask("keys", "create_key", asked)
    running.secrets.add(made.secret)

    assert made.key.name == "CRM"
    assert [one.limit for one in made.key.quotas] == [2_000_000]

    use = {"secret": made.secret, "keyspace_id": keyspace.id, "cost_micros": 1_500_000}
    first = ask("verify", "verify_secret", {**use, "request_id": "lookup-1"})
    second = ask("verify", "verify_secret", {**use, "request_id": "lookup-2"})

    assert (first.valid, first.code, first.charge.amount_micros) == (True, "valid", 1_500_000)
    assert (second.valid, second.code) == (False, "api_key_quota_exceeded")
    assert second.refusal.remaining == 500_000

    charge = {"key_id": made.key.id, "request_id": "lookup-3", "amount_micros": 1_500_000}
    refused = ask("charges", "create_charge", charge)

    assert (refused.status, refused.code) == (402, "api_key_quota_exceeded")
    assert (refused.refusal.level, refused.refusal.remaining) == ("key", 500_000)

    both = ask("charges", "create_charges", {"items": [{**charge, "amount_micros": 500_000}, charge]})

    assert [one.status for one in both.results] == [201, 409]
    assert both.results[0].charge.amount_micros == 500_000
    assert both.results[1].code == "idempotency_conflict"

    why = ask("verify", "explain_use", {"key_id": made.key.id, "cost_micros": 1})

    assert why.code == "api_key_quota_exceeded"
    assert [one.figures.quotas[0].remaining for one in why.rules if one.code == why.code] == [0]

    rotated = ask("keys", "rotate_key", {"overlap_seconds": 3_600}, made.key.id)
    running.secrets.add(rotated.secret)
    revoked = ask(
        "keys", "revoke_key", {"reason": "leaked"}, made.key.id, fence=True,
        if_match=f'"{rotated.key.version}"',
    )  # fmt: skip
    history = ask("keys", "list_key_history", None, made.key.id)

    assert (revoked.status, revoked.fence.held) == ("revoked", True)
    assert [one.action for one in history.items][-1] == "KeyRevoked"
