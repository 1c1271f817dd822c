"""No line that a process writes about itself holds a secret: not in a value, not in an error."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
import structlog

from domain.keyspaces import PRESETS, ROOT_PREFIX
from keyledger_language import SecretFormat, SecretShape, redact
from services.cli.logs import configure_logs
from services.redaction import kept_out_of_logs, without_long_runs
from services.settings import Settings

OWN = SecretShape(prefix="acme_live_", format=SecretFormat(length=30, checksum="crc32"))
SHIPPED = [
    *(SecretShape(prefix=one["prefix"], format=one["secret_format"]) for one in PRESETS.values()),
    SecretShape(prefix=ROOT_PREFIX, format=PRESETS["default"]["secret_format"]),
]


class Thing:
    """Shown by its repr, as whatever is no JSON."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"Thing({self.secret})"


class Written:
    """What was written, as text or as JSON."""

    def __init__(self, to: io.StringIO) -> None:
        self._to = to

    @property
    def text(self) -> str:
        return self._to.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture(params=["json", "text"])
def format_(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, format_: str) -> Iterator[Written]:
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    to = io.StringIO()
    monkeypatch.setattr(sys, "stderr", to)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configure_logs(Settings(log_format=format_))  # type: ignore[arg-type]  # one of the two
    yield Written(to)
    structlog.configure(**before)
    root.handlers = handlers
    root.setLevel(level)


def say(secret: str) -> None:
    """A secret in every place that a line has."""
    log = structlog.get_logger().bind()
    log.warning("told", name=secret, inside={"list": [secret, (1, {secret: secret})], secret: 1})
    event = f"event {secret}"
    log.warning(event, thing=Thing(secret), path=PurePosixPath(secret), raw=secret.encode())
    try:
        try:
            raise ValueError(f"a\n{secret}")
        except ValueError as error:
            raise RuntimeError(f"x{secret}") from error
    except RuntimeError as error:
        log.exception("failed")
        log.error("failed", exc_info=error)
        logging.getLogger("somebody.else").error("said %s %r", secret, [secret], exc_info=error)


@pytest.mark.parametrize("shape", SHIPPED, ids=lambda one: one.prefix)
def test_a_secret_of_a_shipped_shape_is_in_no_line(written: Written, shape: SecretShape) -> None:
    secret = shape.generate()
    say(secret)

    assert secret.removeprefix(shape.prefix)[:12] not in written.text
    assert written.text.count(f"{shape.prefix}[redacted]") > 10


def test_a_secret_of_a_keyspace_that_was_learned_is_in_no_line(written: Written) -> None:
    secret = OWN.generate()
    with kept_out_of_logs(lambda text: redact(text, (OWN,))):
        say(secret)
    learned = written.text
    say(secret)

    assert secret.removeprefix(OWN.prefix)[:12] not in learned
    assert secret in written.text


@pytest.mark.parametrize("format_", ["json"], indirect=True)
def test_lines_stay_json_and_keep_what_is_no_secret(written: Written) -> None:
    key_id = "key_01J9AD700036G7JSKT864P1TPS"
    with kept_out_of_logs(without_long_runs):
        say(f"\n{OWN.generate()}\\")
        structlog.get_logger().bind().warning("kept", key=key_id, n=1, inside={"a": [None, True]})

    assert [line["level"] for line in written.lines]
    kept = written.lines[-1]
    assert (kept["key"], kept["n"], kept["inside"]) == (key_id, 1, {"a": [None, True]})


@pytest.mark.usefixtures("written")
def test_what_ends_the_program_or_a_thread_is_told_without_a_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    secrets = [SHIPPED[0].generate(), OWN.generate()]
    for secret in secrets:
        try:
            raise RuntimeError(f"it was {secret}")
        except RuntimeError as error:
            sys.excepthook(RuntimeError, error, error.__traceback__)
            threading.excepthook(threading.ExceptHookArgs((RuntimeError, error, error.__traceback__, None)))

    told = capsys.readouterr().err
    assert told.count("RuntimeError: it was ") == told.count("[redacted]") == 4
    assert not any(secret[-12:] in told for secret in secrets)
