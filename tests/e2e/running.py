"""One real ledger for a whole test session, and callers that speak HTTP to it as its users do."""

import http.client
import itertools
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from tests.e2e.ledgers import Place, place, until

ROOT_KEYSPACE: Final = "ks_" + "0" * 26
_IDLE_SECONDS: Final = 20.0
"""A connection that idled longer is opened anew; the server closes it after 75."""
UNIT: Final = 1_000_000
"""One unit of currency in micros."""

Json = dict[str, Any]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def body(self) -> Json:
        """The body as JSON; nothing sent is nothing said."""
        found: Json = json.loads(self.raw) if self.raw else {}
        return found

    @property
    def code(self) -> str:
        """What a problem or a verdict says, in one word."""
        return str(self.body.get("code", ""))


class Caller:
    """Somebody with a root key (or none), on a connection of their own."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url
        self.secret = secret
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        self._used_at = time.monotonic()

    def ask(self, method: str, path: str, body: Any = None, /, **headers: str) -> Answer:
        """One exchange; header names are written with underscores."""
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send(method, path, None if body is None else json.dumps(body).encode(), told)

    def send(self, method: str, path: str, raw: bytes | None, headers: dict[str, str]) -> Answer:
        """One exchange, byte for byte."""
        ours = {} if self.secret is None else {"Authorization": f"Bearer {self.secret}"}
        if raw is not None:
            ours["Content-Type"] = "application/json"
        if time.monotonic() - self._used_at > _IDLE_SECONDS:
            self._connection.close()  # before the server does: other tests may have run meanwhile
        self._used_at = time.monotonic()
        self._connection.request(method, path, raw, ours | headers)
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str, /, **query: Any) -> Json:
        """Read something that is there."""
        return done(self.ask("GET", f"{path}?{urlencode(query)}" if query else path))

    def post(self, path: str, body: Any = None, status: int = 200) -> Json:
        """Do something that must succeed, with this status."""
        return done(self.ask("POST", path, {} if body is None else body), status)

    def patch(self, path: str, body: Any) -> Json:
        """Change something, which must succeed."""
        return done(self.ask("PATCH", path, body))

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()


def done(answer: Answer, status: int = 200) -> Json:
    """The body of an answer that must have this status."""
    assert answer.status == status, (answer.status, answer.raw[:500])
    return answer.body


def refused(answer: Answer, status: int, code: str, field: str | None = None) -> Json:
    """The problem that an answer must be, whole as RFC 9457 and the contract have it."""
    body = answer.body
    fields = [one["field"] for one in body.get("errors", [])]

    assert (answer.status, body.get("code")) == (status, code), answer.raw[:500]
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert {"type", "title", "status", "detail", "code", "request_id"} <= body.keys()
    assert body["status"] == status
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert field is None or field in fields, fields
    return body


class Made(NamedTuple):
    """A key and its secret."""

    key: Json
    secret: str

    @property
    def id(self) -> str:
        """The key's id."""
        return str(self.key["id"])


class Running:
    """The ledger that runs, the platform's root key, and short words for what every test makes first."""

    def __init__(self, here: Place) -> None:
        self.here = here
        self.url: str = here.told["api"]
        self.root_key = Path(here.told["root_key_file"]).read_text(encoding="utf-8").strip()
        self.callers: list[Caller] = []
        self.secrets: set[str] = set()
        """Every secret that was shown, to be looked for where none may be."""
        self._numbers = itertools.count(1)
        self.root = self.as_root(self.root_key)
        self._main: str | None = None

    def as_root(self, secret: str | None) -> Caller:
        """Somebody else who manages, or nobody."""
        caller = Caller(self.url, secret)
        self.callers.append(caller)
        return caller

    def name(self, what: str = "name") -> str:
        """A name that nothing else has: request ids, references, organizations."""
        return f"{what}-{next(self._numbers)}"

    @property
    def main(self) -> str:
        """A keyspace of the default shape that any test may use and none changes."""
        if self._main is None:
            self._main = self.keyspace(prefix="kl_main_")
        return self._main

    def keyspace(self, preset: str = "default", **fields: Any) -> str:
        """A keyspace; a second one of a preset needs a prefix of its own."""
        asked = {"name": self.name(preset), "preset": preset, **fields}
        return str(self.root.post("/v1/keyspaces", asked, 201)["id"])

    def prefix(self) -> str:
        """A prefix that overlaps no other."""
        return f"t{secrets.token_hex(6)}_"

    def organization(self, micros: int = 0, **fields: Any) -> str:
        """A customer, with money in the wallet."""
        made = self.root.post("/v1/organizations", {"name": self.name("Customer"), **fields}, 201)
        if micros:
            self.deposit(made["id"], micros)
        return str(made["id"])

    def deposit(self, organization_id: str, micros: int) -> Json:
        """A top-up, or (negative) an adjustment."""
        credit = {"amount_micros": micros, "reference": self.name("top-up")}
        return self.root.post(f"/v1/organizations/{organization_id}/wallet/credits", credit, 201)

    def project(self, organization_id: str, **fields: Any) -> str:
        """A project of a customer."""
        asked = {"name": self.name("Project"), **fields}
        return str(self.root.post(f"/v1/organizations/{organization_id}/projects", asked, 201)["id"])

    def plan(self, models: Any = "*", price_multiplier: str = "1") -> str:
        """A plan."""
        asked = {"name": self.name("plan"), "models": models, "price_multiplier": price_multiplier}
        return str(self.root.post("/v1/plans", asked, 201)["id"])

    def key(self, organization_id: str, keyspace_id: str | None = None, **fields: Any) -> Made:
        """A key of a customer."""
        asked = {
            "keyspace_id": keyspace_id or self.main,
            "organization_id": organization_id,
            "name": self.name("key"),
            **fields,
        }
        made = self.root.post("/v1/keys", asked, 201)
        self.secrets.add(made["secret"])
        return Made(made["key"], made["secret"])

    def root_made(self, *permissions: str, **fields: Any) -> Made:
        """A root key with these permissions."""
        asked = {
            "keyspace_id": ROOT_KEYSPACE,
            "name": self.name("root"),
            "scopes": {"permissions": list(permissions)},
            **fields,
        }
        made = self.root.post("/v1/keys", asked, 201)
        self.secrets.add(made["secret"])
        return Made(made["key"], made["secret"])

    def root_caller(self, *permissions: str, **fields: Any) -> Caller:
        """Somebody who manages with these permissions."""
        return self.as_root(self.root_made(*permissions, **fields).secret)

    def verify(self, secret: str, keyspace_id: str | None = None, **use: Any) -> Json:
        """The verdict on a secret and a use."""
        asked = {"secret": secret, "keyspace_id": keyspace_id or self.main, **use}
        return self.root.post("/v1/verify", asked)

    def wallet(self, organization_id: str) -> Json:
        """Where a wallet stands."""
        return self.root.get(f"/v1/organizations/{organization_id}/wallet")

    @property
    def position(self) -> str:
        """Up to where the ledger has written; it says so, too, while it is not ready for a moment."""
        return str(self.root.ask("GET", "/readyz").body["position"])

    def read(self, path: str, /, **query: Any) -> Json:
        """Something out of projections, with all that was written before."""
        asked = f"{path}?{urlencode(query)}" if query else path
        position = self.position

        def answered() -> Answer | None:
            answer = self.root.ask("GET", asked, None, X_Keyledger_Position=position)
            return None if answer.code == "position_not_reached" else answer

        return done(until(answered))

    def request(self, request_id: str) -> list[Json]:
        """What stands under a request id."""
        found: list[Json] = self.read(f"/v1/requests/{request_id}")["items"]
        return found


class Gateway:
    """A proxy in front of a keyspace's upstream: it shows what its clients sent to forward-auth."""

    def __init__(self, running: Running, keyspace_id: str) -> None:
        self.running = running
        self.keyspace_id = keyspace_id
        self._proxy = running.as_root(None)
        self._key = running.root_made("verify").secret

    def ask(self, uri: str = "/", proxy: str = "", /, **headers: str) -> Answer:
        """A client's request for `uri`, with these headers (written with underscores)."""
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        shown |= {"X-Keyledger-Proxy-Key": self._key, "X-Original-URI": uri}
        query = urlencode({"keyspace_id": self.keyspace_id} | ({"proxy": proxy} if proxy else {}))
        return self._proxy.send("GET", f"/v1/forward-auth?{query}", None, shown)

    def use(self, secret: str, **headers: str) -> Answer:
        """A client's request that shows its secret as a Bearer."""
        return self.ask(Authorization=f"Bearer {secret}", **headers)


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """`keyledger up`, with its own PostgreSQL and NATS; nothing of it is left afterwards."""
    with place() as here:
        here.start()
        made = Running(here)
        # Whoever is told that it is ready may ask for a list at once.
        done(made.root.ask("GET", "/v1/keys"))
        yield made
        for caller in made.callers:
            caller.close()


def written(running: Running) -> str:
    """All that the ledger's processes have logged so far."""
    logs = [running.here.folder / "log", *(running.here.folder / "data").rglob("*.log")]
    return "\n".join(one.read_text(errors="replace") for one in logs if one.is_file())
