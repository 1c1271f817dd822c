"""A gateway that is set up from a preset alone, and what all six promise alike."""

from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

from tests.e2e.running import UNIT, Answer, Caller, Gateway, Json, Made, Running, done, written

BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass
class Shop:
    """A customer of such a gateway: a wallet with one unit, a project, a plan, a key."""

    running: Running
    keyspace_id: str
    organization_id: str
    project_id: str
    plan_id: str
    made: Made
    gateway: Gateway
    client: Caller
    """A holder of a secret who asks the ledger itself."""

    @property
    def secret(self) -> str:
        """The key's secret."""
        return self.made.secret

    def key(self, **fields: Any) -> Made:
        """Another key of the same customer."""
        return self.running.key(self.organization_id, self.keyspace_id, **fields)

    def poor(self, **fields: Any) -> Made:
        """A key of a customer without any money."""
        return self.running.key(self.running.organization(), self.keyspace_id, **fields)


def shop(running: Running, preset: str) -> Shop:
    """The preset as it ships: nothing is set beside its name."""
    keyspace_id = running.keyspace(preset)
    organization_id = running.organization(UNIT)
    plan_id = running.plan()
    return Shop(
        running,
        keyspace_id,
        organization_id,
        running.project(organization_id),
        plan_id,
        running.key(organization_id, keyspace_id, plan_id=plan_id),
        Gateway(running, keyspace_id),
        running.as_root(None),
    )


def checksum(payload: str) -> str:
    """CRC32 as six base62 digits, left-padded: written down again, as a client would."""
    rest, digits = crc32(payload.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = BASE62[digit] + digits
    return digits


def mistyped(secret: str) -> str:
    """The secret with its last character but ten replaced by another one."""
    return secret[:-11] + ("a" if secret[-11] != "a" else "b") + secret[-10:]


def passed(answer: Answer, shop: Shop) -> None:
    """The request went through to the upstream, which was told whose it is."""
    assert answer.status == 200, answer.raw
    assert answer.headers["X-Keyledger-Code"] == "valid"
    assert answer.headers["X-Keyledger-Key-Id"] == shop.made.id
    assert answer.headers["X-Keyledger-Organization-Id"] == shop.organization_id
    assert answer.headers["X-Keyledger-Plan-Id"] == shop.plan_id


def denied(answer: Answer, status: int, code: str) -> None:
    """The client got this status, and a problem that says why."""
    assert (answer.status, answer.code) == (status, code), answer.raw
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.headers["X-Keyledger-Code"] == code
    assert (answer.headers["WWW-Authenticate"] is not None) == (status == 401)


def self_is_free(shop: Shop, uri: str = "/v1/self", /, **credential: str) -> Json:
    """Ask twice what is left, with the secret where this gateway's clients show it."""
    first = done(shop.client.ask("GET", uri, None, **credential))
    again = done(shop.client.ask("GET", uri, None, **credential))

    assert first["key"]["id"] == shop.made.id
    for left in ("wallet_available_micros", "quotas", "rate_limits"):
        assert first[left] == again[left]
    return again


def no_secret_is_written(shop: Shop) -> None:
    """Neither a log line nor an answer of the management API holds one."""
    said = written(shop.running) + str(shop.running.root.get(f"/v1/keys/{shop.made.id}"))

    assert shop.secret not in said
