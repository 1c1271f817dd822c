"""Personal fields in PostgreSQL: encrypted in all that the ledger keeps, in the open where the documents say.

Every table that there is gets looked through, so a new one is in this by itself.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import nats
import psycopg
import pytest
from psycopg import sql

from infra.embedded import EmbeddedNats, EmbeddedPostgres
from tests.e2e.ledgers import Place, place, stop, until
from tests.e2e.running import Caller, Json, done
from tests.servers import delete_streams, fresh_database

_PAGE = Path(__file__).parents[2] / "docs/decisions/personal-fields.md"
_TABLES = """
    SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE relkind IN ('r', 'm', 'S') AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    ORDER BY 1, 2
"""
_LEDGERS_FILES = """
    SELECT format('%I.%I', nspname, relname), pg_read_binary_file(pg_relation_filepath(c.oid))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE relkind IN ('r', 'i', 't') AND (nspname = 'ledger' OR c.oid IN (
        SELECT reltoastrelid FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname = 'ledger'
    ))
"""

ADDRESS = "203.0.113.77"
"""From where it was asked, as a trusted proxy says."""
ALLOWED = "198.51.100.0/27"
USED_FROM = "198.51.100.5"
PERSONAL = (
    "organization-name", "organization-renamed", "organization-external-id", "organization-metadata",
    "project-name", "project-renamed",
    "key-name", "key-renamed", "key-owner", "key-owner-after", "key-tag", "key-tag-after", "key-metadata",
    "key-metadata-after", "imported-name", "imported-owner", "root-name", "root-owner",
    "reason-of-credits", "reason-of-disabling", "reason-of-revoking", "where-it-leaked",
    "charge-metadata", "reservation-metadata",
    "user-agent",
)  # fmt: skip


def told(what: str) -> str:
    """What is written into a field: nothing else has it, in any case."""
    return f"zq-{what}-zq"


class Lived(NamedTuple):
    """A ledger into which everything personal was written, and which has stopped since."""

    database: str
    here: Place
    organization_id: str
    key_id: str
    key: Json
    """As it was answered last."""
    request_id: str
    """Of that answer."""


@pytest.fixture(scope="module")
def lived(postgres_server: EmbeddedPostgres, nats_server: EmbeddedNats) -> Iterator[Lived]:
    asyncio.run(delete_streams(nats_server.url))
    with fresh_database(postgres_server) as database:
        own = {"KEYLEDGER_DATABASE_URL": database, "KEYLEDGER_NATS_URL": nats_server.url}
        with place(**own, KEYLEDGER_TRUSTED_PROXIES="127.0.0.1") as here:
            here.ask("migrate")
            here.ask("bootstrap", "--file", "root-key")
            yield live(database, here)
        asyncio.run(delete_streams(nats_server.url))


def caller_of(here: Place) -> Caller:
    return Caller(here.told["api"], (here.folder / "root-key").read_text().strip())


def live(database: str, here: Place) -> Lived:
    """Write each personal field through the API, and stop in good order: then all of it is saved."""
    process = here.start("serve")
    with closing(caller_of(here)) as root:
        lived = lived_through(database, here, root)
    assert stop(process) == 0
    return lived


def lived_through(database: str, here: Place, root: Caller) -> Lived:
    numbers = iter(range(1, 1_000))

    def ask(method: str, path: str, body: Any, status: int) -> Json:
        by_request_id = path in {"/v1/charges", "/v1/reservations"} or path.endswith("/release")
        key = {} if by_request_id else {"Idempotency_Key": f"n{next(numbers)}"}
        answer = root.ask(method, path, body, User_Agent=told("user-agent"), X_Forwarded_For=ADDRESS, **key)
        assert answer.status == status, (path, answer.status, answer.raw)
        return answer.body

    keyspace = ask("POST", "/v1/keyspaces", {"name": "gateway", "preset": "default"}, 201)["id"]
    opened = {
        "name": told("organization-name"), "external_id": told("organization-external-id"),
        "metadata": {"note": told("organization-metadata")},
    }  # fmt: skip
    organization = ask("POST", "/v1/organizations", opened, 201)["id"]
    ask("PATCH", f"/v1/organizations/{organization}", {"name": told("organization-renamed")}, 200)
    ask("PATCH", f"/v1/organizations/{organization}", {"name": told("organization-renamed")}, 200)
    projects = f"/v1/organizations/{organization}/projects"
    project = ask("POST", projects, {"name": told("project-name")}, 201)["id"]
    ask("PATCH", f"{projects}/{project}", {"name": told("project-renamed")}, 200)
    credit = {"amount_micros": 1_000, "reference": "first", "reason": told("reason-of-credits")}
    ask("POST", f"/v1/organizations/{organization}/wallet/credits", credit, 201)
    asked = {
        "keyspace_id": keyspace, "organization_id": organization, "name": told("key-name"),
        "owner_id": told("key-owner"), "tags": [told("key-tag")], "allowed_ips": [ALLOWED],
        "metadata": {"note": told("key-metadata")},
    }  # fmt: skip
    made = ask("POST", "/v1/keys", asked, 201)
    key_id = made["key"]["id"]
    changed = {
        "name": told("key-renamed"), "owner_id": told("key-owner-after"), "tags": [told("key-tag-after")],
        "metadata": {"note": told("key-metadata-after")},
    }  # fmt: skip
    ask("PATCH", f"/v1/keys/{key_id}", changed, 200)
    imported = {
        "keyspace_id": keyspace, "organization_id": organization, "name": told("imported-name"),
        "owner_id": told("imported-owner"), "sha256": "ab" * 32,
        "hint": "kl_live_...x7Qd",
    }  # fmt: skip
    adopted = ask("POST", "/v1/keys/import", imported, 201)["key"]["id"]
    of_platform = {
        "keyspace_id": "ks_" + "0" * 26, "name": told("root-name"), "owner_id": told("root-owner"),
        "scopes": {"permissions": ["verify"]},
    }  # fmt: skip
    ask("POST", "/v1/keys", of_platform, 201)
    leaked = {**asked, "name": told("key-name")}
    secret = ask("POST", "/v1/keys", leaked, 201)["secret"]
    ask("POST", "/v1/leaks", {"secret": secret, "source": "other", "where": told("where-it-leaked")}, 200)
    ask("POST", f"/v1/keys/{adopted}/disable", {"reason": told("reason-of-disabling")}, 200)
    ask("POST", "/v1/keys/revoke", {"key_ids": [adopted], "reason": told("reason-of-revoking")}, 200)
    charge = {
        "key_id": key_id, "request_id": "r1", "amount_micros": 1, "ip": USED_FROM,
        "metadata": {"n": told("charge-metadata")},
    }  # fmt: skip
    ask("POST", "/v1/charges", charge, 201)
    held = {**charge, "request_id": "r2", "metadata": {"n": told("reservation-metadata")}}
    reservation = ask("POST", "/v1/reservations", held, 201)["reservation"]["id"]
    ask("POST", f"/v1/reservations/{reservation}/release", {}, 200)
    last = root.ask("PATCH", f"/v1/keys/{key_id}", {"environment": "live"}, Idempotency_Key="the last")
    shown = done(last)
    process_position = root.get("/readyz")["position"]
    until(lambda: root.ask("GET", "/v1/audit", None, X_Keyledger_Position=process_position).status == 200)
    return Lived(database, here, organization, key_id, shown, str(last.headers["X-Request-Id"]))


def places_of(database: str, texts: list[str]) -> dict[str, set[str]]:
    """Which of the texts stand in which tables: in columns of text or bytes, or in what is packed in them."""
    found: dict[str, set[str]] = {}
    with psycopg.connect(database) as connection:
        for schema, table in connection.execute(_TABLES).fetchall():
            copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(
                sql.Identifier(schema, table)
            )
            with connection.cursor().copy(copy) as rows:
                data = b"".join(map(bytes, rows))
            for text in texts:
                if text.encode() in data:
                    found.setdefault(f"{schema}.{table}", set()).add(text)
    return found


def documented() -> set[str]:
    """The tables that the documents say hold personal fields in the open."""
    rows = [
        line for line in _PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `projections.")
    ]
    return {name for line in rows for name in re.findall(r"`(projections\.\w+)`", line.split("|")[1])}


def test_personal_fields_are_in_the_open_only_where_the_documents_say(lived: Lived) -> None:
    texts = [*map(told, PERSONAL), ADDRESS, ALLOWED, USED_FROM, lived.request_id]

    found = places_of(lived.database, texts)

    assert {table: texts for table, texts in found.items() if table.startswith("ledger.")} == {}
    assert set(found) == documented()
    assert found["projections.audit"] == {lived.request_id}
    shown = {
        told(what) for what in ("organization-renamed", "key-owner-after", "key-metadata-after", "root-name")
    }
    assert shown <= set.union(*found.values()), "what is looked for can be found"


def test_no_file_of_the_ledgers_tables_ever_held_one(lived: Lived) -> None:
    """Not in a row of before either: what is only deleted stays on its page."""
    with psycopg.connect(lived.database, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        files = connection.execute(_LEDGERS_FILES).fetchall()

    assert {name for name, _ in files} >= {"ledger.events_p0", "ledger.claims_p0", "ledger.state_rows_p0"}
    texts = [*map(told, PERSONAL), ADDRESS, ALLOWED, USED_FROM]
    assert [(name, text) for name, data in files for text in texts if text.encode() in bytes(data)] == []


def test_neither_the_stream_of_events_nor_the_logs_tell_one(lived: Lived, nats_server: EmbeddedNats) -> None:
    texts = [*map(told, PERSONAL), ADDRESS, ALLOWED, USED_FROM]

    messages = asyncio.run(published(nats_server.url))

    assert any(lived.key_id.encode() in message for message in messages), "it is the stream of this ledger"
    assert [text for text in texts for message in messages if text.encode() in message] == []
    assert [text for text in texts if text in lived.here.log()] == []


async def published(url: str) -> list[bytes]:
    """Every message that a stream holds."""
    connection = await nats.connect(url, connect_timeout=5)
    try:
        jetstream = connection.jetstream()
        found: list[bytes] = []
        for stream in await jetstream.streams_info():
            name, state = stream.config.name or "", stream.state
            for number in range(state.first_seq, state.last_seq + 1):
                message = await jetstream.get_msg(name, number)
                found.append((message.data or b"") + repr(message.headers).encode())
        return found
    finally:
        await connection.close()


def test_what_was_saved_and_kept_is_read_by_the_next_process(lived: Lived) -> None:
    with psycopg.connect(lived.database) as connection:
        query = "SELECT through, (SELECT max(notification_id) FROM ledger.events_p0) FROM ledger.checkpoints"
        [(through, head)] = connection.execute(query).fetchall()
    assert through == head, "all of it comes out of state rows"
    process = lived.here.start("serve")
    with closing(caller_of(lived.here)) as root:
        path, key = f"/v1/keys/{lived.key_id}", {"Idempotency_Key": "the last"}

        shown = root.get(path)
        again = root.ask("PATCH", path, {"environment": "live"}, **key)
        other = root.ask("PATCH", path, {"environment": "dev"}, **key)
    stop(process)

    assert (shown["name"], shown["owner_id"]) == (told("key-renamed"), told("key-owner-after"))
    assert (shown["tags"], shown["allowed_ips"]) == ([told("key-tag-after")], [ALLOWED])
    assert shown["metadata"] == {"note": told("key-metadata-after")}
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert again.body == lived.key
    assert (other.status, other.body["code"]) == (409, "idempotency_conflict")


def test_what_the_documents_say_makes_an_organization_forgotten(lived: Lived) -> None:
    """After the others: from here on its names are nowhere."""
    [statements] = re.findall(r"```sql\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with psycopg.connect(lived.database, autocommit=True) as connection:
        for statement in statements.replace("org_...", lived.organization_id).split(";")[:-1]:
            connection.execute(statement.encode())
    process = lived.here.start("serve")
    assert lived.here.ask("rebuild")["rebuilt"]
    assert lived.here.ask("rebuild", "--check")["clean"]
    with closing(caller_of(lived.here)) as root:
        path = f"/v1/keys/{lived.key_id}"
        shown = root.get(path)
        again = root.ask("PATCH", path, {"environment": "live"}, Idempotency_Key="the last")
        # What is written of it now gives it no new key, which would not fit what the old one encrypted.
        renamed = root.patch(path, {"name": told("key-renamed")})
        suspended = root.post(f"/v1/organizations/{lived.organization_id}/suspend", {})
    stop(process)

    of_platform = {told("root-name"), told("root-owner")}
    found = places_of(lived.database, [*map(told, PERSONAL), ALLOWED])
    assert {text for texts in found.values() for text in texts} == of_platform
    assert (shown["name"], shown["owner_id"], shown["tags"], shown["metadata"]) == ("", None, [], {})
    assert (again.status, again.body["code"]) == (409, "idempotency_conflict")
    assert renamed["id"] == lived.key_id
    assert suspended["id"] == lived.organization_id
    process = lived.here.start("serve")
    with closing(caller_of(lived.here)) as root:
        assert root.get(path)["name"] == ""
    assert stop(process) == 0
