import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import nats
import psycopg
import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import StreamConfig

from infra.embedded import (
    DataFolder,
    DataFolderBusyError,
    DataFolderError,
    EmbeddedNats,
    EmbeddedPostgres,
    EmbeddedServers,
    ServerFailedError,
)
from infra.embedded.postgres import programs
from infra.embedded.process import running
from infra.nats import connection
from infra.nats.edge_bus import EdgeBus
from infra.nats.edge_logins import LOGIN_SUBJECT, EdgeLogins
from keyledger_edge._nats import abandon
from tests.servers import server_folder

ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as made:
        yield made / "data"


def eventually(condition: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def holder(folder: Path, *, then: str = "time.sleep(600)") -> subprocess.Popen[str]:
    """Another process that runs the servers; its first line is their pids."""
    program = f"""
        import signal, time
        from infra.embedded import EmbeddedServers
        # Whoever is started in the background by a shell script ignores SIGINT, and so do its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with EmbeddedServers({str(folder)!r}) as servers:
            print(servers.postgres.pid, servers.nats.pid, flush=True)
            {then}
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )


def pids_of(other: subprocess.Popen[str]) -> list[int]:
    assert other.stdout is not None
    return [int(word) for word in other.stdout.readline().split()]


def kill(other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert other.stdout is not None
    other.stdout.close()


def count_rows(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def make_row(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
        connection.execute("INSERT INTO kept VALUES (1)")


def test_the_database_is_durable_and_reached_by_its_socket_alone(postgres_server: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres_server.dsn) as connection:
        settings: dict[str, str] = dict(
            connection.execute("SELECT name, setting FROM pg_settings WHERE setting IS NOT NULL").fetchall()
        )

    assert settings["server_version_num"].startswith("18")
    assert (settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"]) == (
        "on",
        "on",
        "on",
    )
    assert settings["listen_addresses"] == ""
    assert settings["data_checksums"] == "on"
    socket_folder = Path(settings["unix_socket_directories"].strip('"'))
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700


def test_each_test_has_a_database_of_its_own(database: str) -> None:
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()

    assert found == (0,)


def test_what_was_written_is_there_at_the_next_start(folder: Path) -> None:
    with EmbeddedServers(folder, nats=False) as servers:
        make_row(servers.postgres)
    with EmbeddedServers(folder, nats=False) as servers:
        make_row(servers.postgres)

        assert count_rows(servers.postgres) == 2


def test_servers_run_in_a_path_with_a_space_and_a_quote(folder: Path) -> None:
    folder.mkdir(mode=0o711)
    with EmbeddedServers(folder / """it's "my" ledger""") as servers:
        make_row(servers.postgres)

        assert count_rows(servers.postgres) == 1
        assert servers.nats.alive


def test_a_path_too_long_for_a_socket_gets_a_short_private_folder_and_keeps_it(folder: Path) -> None:
    folder.mkdir(mode=0o711)
    long = folder / ("long" * 30)
    with EmbeddedServers(long, nats=False) as servers:
        first = servers.postgres.dsn
        make_row(servers.postgres)
        chosen = Path((long / "socket-folder").read_text())

        assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    with EmbeddedServers(long, nats=False) as servers:
        assert servers.postgres.dsn == first
    chosen.rmdir()


def test_a_second_instance_is_refused_and_told_who_holds_the_folder(folder: Path) -> None:
    with DataFolder(folder), pytest.raises(DataFolderBusyError) as refusal, EmbeddedServers(folder):
        pass

    assert str(folder) in str(refusal.value)
    assert f"pid {os.getpid()}" in str(refusal.value)


@pytest.mark.parametrize("farewell", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_servers_die_with_their_keeper_however_it_ends(folder: Path, farewell: signal.Signals) -> None:
    other = holder(folder)
    pids = pids_of(other)
    assert len(pids) == 2

    other.send_signal(farewell)
    other.wait()
    assert other.stdout is not None
    other.stdout.close()

    eventually(lambda: not any(map(running, pids)))


def test_a_start_right_after_a_kill_has_the_data(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        make_row(servers.postgres)
    for _ in range(3):
        other = holder(folder)
        assert len(pids_of(other)) == 2
        kill(other)
        with EmbeddedServers(folder) as servers:
            assert count_rows(servers.postgres) == 1


def test_a_start_after_the_database_itself_was_killed_recovers(folder: Path) -> None:
    with EmbeddedServers(folder, nats=False) as servers:
        make_row(servers.postgres)
        pid = servers.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not servers.postgres.alive)

        assert servers.revive() == ["postgres"]
        servers.postgres.wait()

        assert count_rows(servers.postgres) == 1
        assert servers.revive() == []


def test_a_stray_database_is_ended_before_the_next_starts(folder: Path) -> None:
    # As where the kernel has no parent-death signal: the first server is simply left behind.
    with EmbeddedServers(folder) as servers:
        make_row(servers.postgres)
        strays = [servers.postgres.pid, servers.nats.pid]
        servers.folder.close()

        with EmbeddedServers(folder) as later:
            assert count_rows(later.postgres) == 1
            assert not any(running(pid) for pid in strays if pid is not None and not _is_our_zombie(pid))


def _is_our_zombie(pid: int) -> bool:
    # Still our child here, so it stays until it is waited for.
    return os.waitpid(pid, os.WNOHANG) != (0, 0)


def test_a_pid_that_a_stranger_has_now_is_no_obstacle(folder: Path) -> None:
    with EmbeddedServers(folder, nats=False) as servers:
        make_row(servers.postgres)
        os.kill(servers.postgres.pid or 0, signal.SIGKILL)
        eventually(lambda: not servers.postgres.alive)
    stale = folder / "postgres" / "postmaster.pid"
    stale.write_text("\n".join([str(os.getpid()), *stale.read_text().splitlines()[1:], ""]))

    with EmbeddedServers(folder, nats=False) as servers:
        assert count_rows(servers.postgres) == 1


def test_an_initdb_that_was_cut_off_is_begun_again(folder: Path) -> None:
    (folder / "postgres.new" / "base").mkdir(parents=True)

    with EmbeddedServers(folder, nats=False) as servers:
        make_row(servers.postgres)


def test_a_folder_that_cannot_be_made_is_a_sentence(folder: Path) -> None:
    folder.write_text("a file")

    with pytest.raises(DataFolderError, match=r"cannot be used: .*\.$"), EmbeddedServers(folder / "data"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_a_sentence(folder: Path) -> None:
    folder.mkdir()
    (folder / "lock").symlink_to("/dev/full")

    with pytest.raises(DataFolderError, match="No space left on device"), DataFolder(folder):
        pass


def test_a_database_of_another_version_is_a_sentence(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "PG_VERSION").write_text("15\n")

    with pytest.raises(DataFolderError, match="of PostgreSQL 15"), EmbeddedServers(folder, nats=False):
        pass


def test_what_postgres_says_is_in_the_sentence(folder: Path) -> None:
    with DataFolder(folder) as data, pytest.raises(ServerFailedError, match="shared_buffers"):
        EmbeddedPostgres(data, settings={"shared_buffers": "a lot"}).start()


def test_nothing_in_the_folder_is_for_others(folder: Path) -> None:
    with EmbeddedServers(folder):
        for path in folder.iterdir():
            expected = 0o700 if path.is_dir() else 0o600
            assert (path.name, stat.S_IMODE(path.stat().st_mode)) == (path.name, expected)


@pytest.mark.skipif(not ROOT, reason="only root gives up root")
def test_root_gives_up_root_for_the_servers(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        for pid in (servers.postgres.pid, servers.nats.pid):
            status = Path(f"/proc/{pid}/status").read_text()
            facts = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
            assert "0" not in facts["Uid"] + facts["Gid"]
            assert facts["Groups"] == []
            if open_to_all(programs()):
                assert facts["CapEff"] == ["0000000000000000"]


@pytest.mark.skipif(not ROOT, reason="only root has folders that only root may enter")
def test_root_may_keep_the_data_where_only_root_may_go(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with EmbeddedServers(folder / "data") as servers:
        make_row(servers.postgres)

        assert count_rows(servers.postgres) == 1
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_servers_start_from_the_main_thread_only(folder: Path) -> None:
    program = f"""
        import threading
        from infra.embedded import EmbeddedServers, ServerFailedError
        said = []
        def attempt():
            try:
                EmbeddedServers({str(folder)!r}).start()
            except ServerFailedError as error:
                said.append(str(error))
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        print(said)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )

    assert "main thread only" in done.stdout


async def test_nats_keeps_streams_and_its_port_over_a_restart(folder: Path) -> None:
    with EmbeddedServers(folder, postgres=False) as servers:
        connection = await nats.connect(servers.nats.url)
        await connection.jetstream().add_stream(StreamConfig(name="KEPT", subjects=["kept.>"]))
        await connection.jetstream().publish("kept.one", b"1")
        await connection.close()
        url = servers.nats.url
    with EmbeddedServers(folder, postgres=False) as servers:
        assert servers.nats.url == url
        connection = await nats.connect(servers.nats.url)
        stream = await connection.jetstream().stream_info("KEPT")
        await connection.close()

        assert stream.state.messages == 1


def test_nats_lets_nobody_in_without_the_password(nats_server: EmbeddedNats) -> None:
    with socket.create_connection(("127.0.0.1", nats_server.port), timeout=5) as connection:
        connection.sendall(b"CONNECT {}\r\nPING\r\n")
        said = b"".join(iter(lambda: connection.recv(4096), b""))

    assert b"Authorization Violation" in said
    assert b"PONG" not in said


SECRET = b"s" * 32


class LetsIn:
    """A ledger that lets edges in at NATS; `good` are its root keys."""

    def __init__(self, server: EmbeddedNats, *good: str) -> None:
        self.good = {*good}
        self.bus = EdgeBus(server.url)
        self.bus.logins = self.logins = EdgeLogins(
            server.issuer_seed,
            secret=lambda: SECRET,
            may_connect=lambda root_key_id: root_key_id in self.good,
            decides=lambda: True,
        )
        self._server = server
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.bus.run(self._stop))
        while not self.bus.connected:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._running

    async def edge(self, root_key_id: str, *, as_if: str | None = None) -> tuple[Client, list[str]]:
        """A connection with this root key's password, and what NATS refuses on it."""
        refused: list[str] = []

        async def note(error: Exception) -> None:
            refused.append(str(error))

        user, password = as_if or root_key_id, self.logins.password_of(root_key_id)
        client = Client()
        try:
            await client.connect(
                self._server.edge_url, user=user, password=password, error_cb=note, allow_reconnect=False,
                connect_timeout=5,
            )  # fmt: skip
        except NatsError:
            await abandon(client)
            raise
        return client, refused


async def _hear(heard: Subscription, ledger: Client, subject: str, data: bytes) -> bytes:
    """What is heard first. (NATS may lose what is said in a new connection's first moment.)"""
    for _ in range(10):
        await ledger.publish(subject, data)
        with contextlib.suppress(NatsTimeoutError):
            return (await heard.next_msg(timeout=1)).data
    raise AssertionError("nothing was heard")


async def _refusals(client: Client, refused: list[str], count: int) -> list[str]:
    await client.flush()
    for _ in range(500):
        if len(refused) >= count:
            break
        await asyncio.sleep(0.01)
    return refused


async def test_an_edge_hears_changes_and_cannot_announce_them(nats_server: EmbeddedNats) -> None:
    ledger = await nats.connect(nats_server.url)
    async with LetsIn(nats_server, "key_1") as logins:
        edge, refused = await logins.edge("key_1")
        heard = await edge.subscribe("keyledger.edge.changes")
        await edge.flush()

        assert await _hear(heard, ledger, "keyledger.edge.changes", b"revoked") == b"revoked"

        await edge.publish("keyledger.edge.changes", b"forged")
        await edge.publish("keyledger.events.org_1.key_1.KeyRevoked", b"forged")
        await edge.publish("keyledger.edge.grant.key_1.edge_1", b"forged")
        await edge.publish("$JS.API.STREAM.DELETE.KEYLEDGER", b"")
        await edge.publish("keyledger.edge.lease", b"nobody's")
        await edge.publish("keyledger.edge.lease.key_2", b"another's")
        await edge.subscribe("keyledger.events.>")
        await edge.subscribe("keyledger.edge.lease.key_1")
        await edge.subscribe(LOGIN_SUBJECT)

        assert len(await _refusals(edge, refused, 9)) == 9

        await edge.close()
    await ledger.close()


async def test_an_edge_hears_the_grants_of_its_own_root_key_only(nats_server: EmbeddedNats) -> None:
    ledger = await nats.connect(nats_server.url)
    async with LetsIn(nats_server, "key_1", "key_2") as logins:
        edge, refused = await logins.edge("key_1")
        heard = await edge.subscribe("keyledger.edge.grant.key_1.>")
        for wanted in ("key_2.edge_2", ">", "*.edge_2"):
            await edge.subscribe(f"keyledger.edge.grant.{wanted}")

        assert len(await _refusals(edge, refused, 3)) == 3

        await ledger.publish("keyledger.edge.grant.key_2.edge_2", b"another's")

        assert await _hear(heard, ledger, "keyledger.edge.grant.key_1.edge_1", b"its own") == b"its own"

        await edge.close()
    await ledger.close()


class Listening:
    """A ledger's end that hears what the edges of `speakers` say; the flood is a client of NATS itself."""

    def __init__(self, server: EmbeddedNats, **speakers: int) -> None:
        self.heard: list[bytes] = []
        self.speakers = speakers
        self.bus = EdgeBus(server.url)
        self.bus.handle = self._hear
        self.bus.speakers = lambda: self.speakers
        self._stop = asyncio.Event()

    def _hear(self, data: bytes) -> None:
        self.heard.append(data)

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.bus.run(self._stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._running

    @property
    def floods(self) -> int:
        return self.heard.count(b"flood")

    async def hears(self, client: Client, root_key_id: str, data: bytes) -> None:
        """Wait until what is said there is heard."""
        async with asyncio.timeout(10):
            while data not in self.heard:
                await client.publish(f"keyledger.edge.lease.{root_key_id}", data)
                await asyncio.sleep(0.02)


async def test_of_each_root_keys_edges_only_so_much_is_heard(nats_server: EmbeddedNats) -> None:
    client = await nats.connect(nats_server.url)
    async with Listening(nats_server, key_1=1, key_2=1) as ledger:
        await ledger.hears(client, "key_1", b"first")
        began = time.monotonic()
        # However long anybody stands still: more was said than is heard, and that was noticed.
        while time.monotonic() - began < 1.5 or not ledger.bus.overflows or ledger.floods <= 50:
            assert time.monotonic() - began < 30
            for _ in range(1_000):
                await client.publish("keyledger.edge.lease.key_1", b"flood")
            await client.flush()
        seconds = time.monotonic() - began
        flooded = ledger.floods
        await ledger.hears(client, "key_2", b"of another")

        assert flooded <= 1.5 * (202 + 208 * seconds)

        await ledger.hears(client, "key_1", b"it comes back")
    await client.close()


async def test_long_messages_count_as_many(
    nats_server: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that was lost begins with nothing to make good; NATS may stand still for a while.
    monkeypatch.setattr(connection, "_MOST_PINGS_OUT", 100)
    client = await nats.connect(nats_server.url)
    async with Listening(nats_server, key_1=1, key_2=1) as ledger:
        await ledger.hears(client, "key_1", b"first")
        for _ in range(8):  # one of these takes more than four seconds to make good
            await client.publish("keyledger.edge.lease.key_1", b"x" * 4_190_000)
        await client.flush()
        await ledger.hears(client, "key_2", b"of another")
        await client.publish("keyledger.edge.lease.key_1", b"not before it is made good")
        await client.flush()
        await ledger.hears(client, "key_2", b"of another still")

        assert max(map(len, ledger.heard)) < 100
        assert b"not before it is made good" not in ledger.heard
        assert ledger.bus.overflows > 0
    await client.close()


async def test_nobody_listens_where_a_root_key_has_no_edges_any_more(nats_server: EmbeddedNats) -> None:
    client = await nats.connect(nats_server.url)
    async with Listening(nats_server, key_1=1) as ledger:
        await ledger.hears(client, "key_1", b"first")
        ledger.speakers = {"key_2": 1}
        ledger.bus.look()
        await ledger.hears(client, "key_2", b"second")
        await client.publish("keyledger.edge.lease.key_1", b"dead")
        await client.flush()
        await ledger.hears(client, "key_2", b"third")

        assert b"dead" not in ledger.heard
    await client.close()


async def test_an_honest_crowd_is_heard_whole(nats_server: EmbeddedNats) -> None:
    client = await nats.connect(nats_server.url)
    async with Listening(nats_server, key_1=300) as ledger:
        await ledger.hears(client, "key_1", b"first")
        for change in range(20):
            ledger.bus.publish_change(b"a change")
            await asyncio.sleep(0.05)
            for edge in range(300):
                await client.publish("keyledger.edge.lease.key_1", b"%d of %d" % (change, edge))
            await client.flush()
        async with asyncio.timeout(10):
            while len({one for one in ledger.heard if b" of " in one}) < 20 * 300:
                await asyncio.sleep(0.01)

        assert ledger.bus.overflows == 0
    await client.close()


async def test_who_has_no_good_root_key_does_not_get_in(nats_server: EmbeddedNats) -> None:
    async with LetsIn(nats_server, "key_1", "key_2") as logins:
        edge, _ = await logins.edge("key_1")
        await edge.close()
        with pytest.raises(NatsError):
            await logins.edge("key_1", as_if="key_2")
        logins.good.discard("key_1")
        with pytest.raises(NatsError):
            await logins.edge("key_1")


def test_a_wanted_port_that_is_taken_is_a_sentence(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])

        with (
            pytest.raises(ServerFailedError, match=f"Port {port}"),
            EmbeddedServers(folder, postgres=False, nats_port=port),
        ):
            pass


def test_a_remembered_port_that_is_taken_gives_way(folder: Path) -> None:
    with EmbeddedServers(folder, postgres=False) as servers:
        port = servers.nats.port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with EmbeddedServers(folder, postgres=False) as servers:
            assert servers.nats.port != port
