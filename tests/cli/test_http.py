"""How the command line talks to a ledger."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from services.cli.faults import CommandError
from services.cli.http import ApiClient
from tests.cli.conftest import Shop


@pytest.fixture
def client(shop: Shop) -> Iterator[ApiClient]:
    root_key = (shop.ledger.folder / "data" / "root-key").read_text().strip()
    with closing(ApiClient(shop.ledger.environment["KEYLEDGER_URL"], root_key)) as made:
        yield made


def hang_up(client: ApiClient) -> None:
    """As a ledger does with a connection that lies idle, while a person thinks about a question."""
    assert client._connection is not None
    client._connection.sock.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_lay_idle_for_too_long_is_made_anew(client: ApiClient) -> None:
    client.get("/v1/organizations")
    hang_up(client)

    assert client.post("/v1/organizations", {"name": "After a pause"})["name"] == "After a pause"


def test_it_says_who_asks(shop: Shop, client: ApiClient) -> None:
    made = client.post("/v1/organizations", {"name": "Asked by name"})

    (entry,) = client.get("/v1/audit", organization_id=made["id"])["items"]
    assert entry["user_agent"].startswith("keyledger-cli/")


def test_a_ledger_that_is_not_there_is_told_with_what_to_look_at() -> None:
    nobody = ApiClient("http://127.0.0.1:9", None)

    with pytest.raises(CommandError) as refused:
        nobody.get("/v1/keys")

    assert refused.value.exit_code == 6
    assert "http://127.0.0.1:9" in str(refused.value)
    assert "KEYLEDGER_URL" in str(refused.value)


def test_a_key_that_is_none_is_told_what_to_set(shop: Shop) -> None:
    done = shop.ledger.run("keys", "list", KEYLEDGER_API_KEY="kl_root_wrong")

    assert done.returncode == 3
    assert "Set KEYLEDGER_API_KEY, or give --key-file." in done.stderr
    assert "kl_root_wrong" not in done.stderr
