"""Secrets are found in text, whatever surrounds them, and removed completely."""

from __future__ import annotations

import pytest

from keyledger_edge import AcceptedFormat, SecretFormat, SecretShape, Sidecar, redact
from keyledger_edge.testing import FakeLedger
from tests.edge.asgi import call

OURS = SecretShape(prefix="acme_live_", format=SecretFormat(length=30, checksum="crc32"))
IMPORTED = SecretShape(
    prefix="acme_live_",
    format=SecretFormat(length=30, checksum="crc32"),
    accepted=(
        AcceptedFormat(prefix="acme_live_", min_length=22, max_length=64),
        AcceptedFormat(prefix="old-", alphabet="hex", min_length=32, max_length=32),
    ),
)


@pytest.mark.parametrize(
    "around", ["{}", " {} ", "x{}", "%20{}", r"a\n{}", "Bearer {}", "{}, {}", "key={}&", "_{}-", "9{}"]
)
def test_a_secret_is_found_whatever_stands_around_it(around: str) -> None:
    secret = OURS.generate()
    told = redact(around.format(secret, secret), (OURS,))

    assert told == around.format("acme_live_[redacted]", "acme_live_[redacted]")


def test_nothing_is_left_of_a_secret_that_runs_on() -> None:
    for shape in (OURS, IMPORTED):
        assert redact(f"acme_live_{'Ab3' * 20} and more", (shape,)) == "acme_live_[redacted] and more"


def test_a_secret_without_its_checksum_is_one_and_a_shorter_beginning_is_none() -> None:
    secret = OURS.generate()

    assert redact(secret[:-6], (OURS,)) == "acme_live_[redacted]"
    assert redact(secret[:-7], (OURS,)) == secret[:-7]


def test_an_imported_secret_is_found_by_its_own_prefix() -> None:
    text = f"was old-{'0123456789abcdef' * 2}"

    assert redact(text, (IMPORTED,)) == "was acme_live_[redacted]"
    assert redact(text, (OURS,)) == text


@pytest.mark.parametrize(
    "body", [{"secret": "s", "{secret}": 1}, {"secret": "s", "keyspace_id": "{secret}"}, {"{secret}": "s"}]
)
async def test_a_sidecar_repeats_no_secret_of_any_keyspace(body: dict[str, object]) -> None:
    secret = SecretShape(prefix="unheard_", format=SecretFormat(length=30)).generate()
    sent = {
        name.replace("{secret}", secret): str(value).replace("{secret}", secret)
        for name, value in body.items()
    }
    told = await call(Sidecar(FakeLedger().verifier()), "/v1/verify", method="POST", body=sent)

    assert 400 <= told.status < 500
    assert secret.encode() not in told.body
    assert b"[redacted]" in told.body


async def test_a_sidecar_names_the_keyspace_that_it_does_not_serve() -> None:
    keyspace_id = "ks_01J9AD700036G7JSKT864P1TPS"
    told = await call(
        Sidecar(FakeLedger().verifier()),
        "/v1/verify",
        method="POST",
        body={"secret": "s", "keyspace_id": keyspace_id},
    )

    assert told.status == 404
    assert keyspace_id.encode() in told.body
