"""The change feed on the command line: pages, and a live tail that a cut takes nothing from."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from services.cli.events import ServerSentEvent, messages
from tests.cli.conftest import Shop
from tests.e2e.ledgers import PROGRAM
from tests.processes import start_with_us


class Wire:
    """A way to the ledger that can be cut, and mended."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._whole = True
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def cut(self) -> None:
        """Everything that is open ends, and nothing new comes through."""
        self._whole = False
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """From now on things come through again."""
        self._whole = True

    def close(self) -> None:
        """Take it away."""
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for one in (*self._open, self._listener):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            self.connections += 1
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(shop: Shop) -> Generator[Wire]:
    parts = urlsplit(shop.ledger.environment["KEYLEDGER_URL"])
    assert parts.hostname is not None
    assert parts.port is not None
    made = Wire((parts.hostname, parts.port))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def following(shop: Shop, *more: str) -> Generator[subprocess.Popen[str]]:
    process = start_with_us(
        [*PROGRAM, "events", "--follow", "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=shop.ledger.environment,
        cwd=shop.ledger.folder,
        # Whoever is started in the background by a shell script ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the tail ended"
    return json.loads(line)


def head(shop: Shop) -> str:
    return str(shop.json("events", "list", "--limit", "10000")["next_after"])


def opened(shop: Shop, name: str) -> str:
    return str(shop.ledger.ask("orgs", "create", name)["id"])


def test_a_list_goes_on_behind_a_position_and_shows_the_types_asked_for(shop: Shop) -> None:
    before = head(shop)
    first, second = opened(shop, "Listed 1"), opened(shop, "Listed 2")

    page = shop.json("events", "list", "--after", before, "--types", "OrganizationOpened", "--limit", "1")
    rest = shop.json("events", "list", "--after", page["next_after"], "--types", "OrganizationOpened")

    assert [one["organizationid"] for one in page["items"] + rest["items"]] == [first, second]
    assert shop.json("events", "--after", before, "--types", "KeyRevoked")["items"] == []


def test_people_get_a_table_and_a_wrong_type_is_refused_in_a_sentence(shop: Shop) -> None:
    key, _ = shop.key("In the feed")

    shown = shop.ledger.run("events", "--org", "Acme", "--types", "KeyCreated", "--limit", "500").stdout
    assert any("KeyCreated" in line and key in line for line in shown.splitlines())

    refused = shop.ledger.run("events", "--types", "KeyBaked")
    assert refused.returncode == 1
    assert "there is no event called KeyBaked" in refused.stderr


def test_following_begins_now_and_ends_at_its_limit(shop: Shop) -> None:
    opened(shop, "Before")
    with following(shop, "--types", "OrganizationOpened", "--after", head(shop), "--limit", "1") as tail:
        new = opened(shop, "After")

        assert next_event(tail)["organizationid"] == new
        assert tail.wait(30) == 0


def test_a_cut_loses_no_event_and_repeats_none(shop: Shop) -> None:
    after = head(shop)
    with wire_to(shop) as wire:
        url = f"http://127.0.0.1:{wire.port}"
        with following(shop, "--types", "OrganizationOpened", "--after", after, "--url", url) as tail:
            seen = [opened(shop, "Before the cut")]
            assert next_event(tail)["organizationid"] == seen[0]
            wire.cut()
            seen += [opened(shop, f"During the cut {n}") for n in range(3)]
            wire.mend()
            came = [next_event(tail)["organizationid"] for _ in range(3)]
            last = opened(shop, "After the cut")

            assert [seen[0], *came, next_event(tail)["organizationid"]] == [*seen, last]
            assert wire.connections >= 2
            tail.send_signal(signal.SIGINT)
            assert tail.wait(30) == 130
            assert tail.stderr is not None
            assert "as soon as possible" in tail.stderr.read()


def test_a_ledger_that_is_not_there_to_begin_with_is_told_at_once(shop: Shop) -> None:
    done = shop.ledger.run("events", "--follow", "--after", "0-0", "--url", "http://127.0.0.1:9")

    assert done.returncode == 6
    assert "No ledger answers at http://127.0.0.1:9" in done.stderr


def test_a_key_that_dies_ends_its_tail_instead_of_trying_for_ever(shop: Shop) -> None:
    made = shop.ledger.ask("keys", "create", "tail", "--root", "--permission", "events:read")
    file = shop.ledger.folder / "tail-key"
    file.write_text(made["secret"])
    file.chmod(0o600)
    after = head(shop)
    with following(shop, "--types", "OrganizationOpened", "--after", after, "--key-file", str(file)) as tail:
        opened(shop, "Seen by the tail")
        next_event(tail)
        shop.ledger.ask("keys", "revoke", made["key"]["id"], "--yes")

        assert tail.wait(30) == 3


def lines(text: str) -> Iterator[bytes]:
    return iter(text.encode().splitlines(keepends=True))


def test_a_message_is_whole_when_its_empty_line_has_come() -> None:
    text = "retry: 1000\n\nid: 0-1\nevent: x\ndata: {}\n\n: heartbeat\nid: 0-9\n\nid: 0-10\ndata: cut off"

    assert list(messages(lines(text))) == [
        ServerSentEvent(),
        ServerSentEvent("0-1", "{}"),
        ServerSentEvent("0-9"),
    ]


def test_data_on_two_lines_is_one_text() -> None:
    assert list(messages(lines("data: a\r\ndata: b\r\n\r\n"))) == [ServerSentEvent("", "a\nb")]
