"""Fixture: a replicated PostgreSQL, a primary and a synchronous standby, and all that can befall the two.

    replicas.conninfo                 # names both hosts; a connection is made to the one that writes
    replicas.primary.kill()           # kill -9 of it and all its children: a machine that is gone
    replicas.promote(replicas.b)      # the standby becomes the primary, whatever the old one does
    replicas.isolate()                # replication is cut, both live: promote now, and the brain is split
    replicas.make_asynchronous()      # with isolate(), kill() and promote(): a lossy fail-over
    replicas.rebuild(replicas.a)      # a fresh standby of whoever is the primary now
    copy = replicas.a.copy_cold(path); replicas.a.restore(copy)

Everything may be called from any thread, and blocks: a test with an event loop uses `asyncio.to_thread`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from infra.embedded import EmbeddedServers
from infra.embedded.identity import Identity
from infra.embedded.postgres import DATABASE, OWNER, SETTINGS, programs
from infra.embedded.process import LAUNCHER, running
from infra.postgres.migrate import migrate
from tests.contract.cable import Cable
from tests.servers import initialised, server_folder

_PATIENCE_SECONDS: Final = 60.0
_SETTINGS: Final = SETTINGS | {
    "wal_keep_size": "1GB",  # a standby that was away catches up
    "wal_retrieve_retry_interval": "100ms",
    "shared_buffers": "32MB",
}
_starter = ThreadPoolExecutor(1, "starts PostgreSQL")
"""The kernel ends what was started when the thread that forked ends; this one ends with the tests."""


def _until(true: Callable[[], Any], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.01)


class Node:
    """One PostgreSQL of the two, on a unix socket of its own."""

    def __init__(self, name: str, folder: Path, identity: Identity) -> None:
        self.name = name
        self.folder = folder / name
        self.data = self.folder / "data"
        self.log = folder / f"{name}.log"
        self._identity = identity
        self._process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(mode=0o700)
        if identity.drops:
            os.chown(self.folder, identity.uid, identity.gid)

    def conninfo(self, database: str = DATABASE) -> str:
        """This one and no other, as its superuser."""
        return make_conninfo("", host=str(self.folder), user=OWNER, dbname=database, connect_timeout="5")

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # -- its life

    def start(self, *, follows: str | None = None) -> None:
        """Have it ready: as a primary, or as the standby of whoever is at this conninfo."""
        assert not self.alive, f"{self.name} runs"
        signal_file = self.data / "standby.signal"
        if follows is None:
            signal_file.unlink(missing_ok=True)
        else:
            signal_file.touch(mode=0o600)
            self._own(signal_file)
        settings = _SETTINGS | {
            "unix_socket_directories": f'"{self.folder}"',
            "cluster_name": self.name,
            "primary_conninfo": follows or "",
        }
        argv = ["postgres", "-D", str(self.data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        self._process = self._launch(argv, farewell=signal.SIGINT)
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            assert self.alive, f"{self.name} did not start: {self.last_words()}"
            with suppress(psycopg.OperationalError):
                self.ask("SELECT 1")
                return True
            return False

        _until(answers, f"{self.name} ready")

    def stop(self) -> None:
        """End it in order: what its standby has not yet got is sent first, if it is there."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """kill -9 of it and its children at once, as a machine that loses its power."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGSTOP)  # it starts no more children
            children = _children(self._process.pid)
            for pid in (self._process.pid, *children):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _until(lambda: not any(map(running, children)), f"the end of {self.name}'s children")
        self._process.wait()

    def last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2_000:] if self.log.exists() else ""

    # -- what it says and does

    def ask(self, statement: str, *parameters: Any, database: str = DATABASE) -> Any:
        """The first value of the first row, on a session of its own."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            row = connection.execute(statement.encode(), parameters or None).fetchone()
        return None if row is None else row[0]

    @property
    def in_recovery(self) -> bool:
        """Whether it is a standby."""
        return bool(self.ask("SELECT pg_is_in_recovery()"))

    @property
    def timeline(self) -> int:
        return int(self.ask("SELECT timeline_id FROM pg_control_checkpoint()"))

    @property
    def written(self) -> int:
        """How far its write-ahead log goes that is durable here, in bytes."""
        return int(
            self.ask(
                "SELECT CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), '0/0')"
                " ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn"
            )
        )

    def configure(self, setting: str, value: str) -> None:
        """Change a setting that a reload changes; it waits for no standby, and a standby may too."""
        quoted = value.replace("'", "''")
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET {setting} = '{quoted}'".encode())
            connection.execute("SELECT pg_reload_conf()")
            _until(
                lambda: connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,),
                f"{setting} = {value}",
            )

    def promote(self) -> None:
        """From standby to primary, on a new timeline."""
        assert self.ask("SELECT pg_promote(true, 60)"), self.last_words()

    def terminate_sessions(self, application_name: str = "keyledger%") -> int:
        """End the sessions of these programs, as an operator would; how many."""
        return int(
            self.ask(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE %s",
                application_name,
            )
        )

    # -- its data folder

    def copy_cold(self, target: Path) -> Path:
        """A copy of its data folder, which must be stopped in order."""
        assert not self.alive, f"{self.name} runs, and its folder changes"
        _copy(self.data, target)
        return target

    def restore(self, copy: Path) -> None:
        """Its data folder as it was copied; start it afterwards."""
        assert not self.alive, f"{self.name} runs"
        shutil.rmtree(self.data, ignore_errors=True)
        _copy(copy, self.data)

    def remove(self, copy: Path) -> None:
        """A copy is no longer needed."""
        shutil.rmtree(copy)

    def copy_from(self, source: str) -> None:
        """A base backup of whoever runs at this conninfo."""
        assert not self.alive, f"{self.name} runs"
        shutil.rmtree(self.data, ignore_errors=True)
        argv = [
            "pg_basebackup", "--pgdata", str(self.data), "--dbname", source, "--checkpoint=fast",
            "--wal-method=stream", "--no-sync",
        ]  # fmt: skip
        process = self._launch(argv, farewell=signal.SIGTERM)
        assert process.wait(_PATIENCE_SECONDS) == 0, self.last_words()

    def _launch(self, argv: list[str], *, farewell: signal.Signals) -> subprocess.Popen[bytes]:
        job = {
            "parent": os.getpid(), "uid": self._identity.uid, "gid": self._identity.gid,
            "drops": self._identity.drops, "signal": int(farewell), "folder": str(self.folder),
            "argv": [str(programs() / argv[0]), *argv[1:]],
        }  # fmt: skip

        def start() -> subprocess.Popen[bytes]:
            with self.log.open("ab") as output:
                return subprocess.Popen(
                    [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(job)],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                )  # fmt: skip

        return _starter.submit(start).result()

    def _own(self, path: Path) -> None:
        if self._identity.drops:
            os.chown(path, self._identity.uid, self._identity.gid)


class Replicas:
    """Two PostgreSQL, each of which reaches the other through a cable that can be pulled."""

    def __init__(self, folder: Path, template: Path) -> None:
        identity = Identity.choose(owned=[template])
        self.a, self.b = Node("a", folder, identity), Node("b", folder, identity)
        self.nodes = (self.a, self.b)
        for node in self.nodes:
            node.restore(template)
        # The cable named after a node leads to it.
        self._cables = {node.name: Cable(node.conninfo(), open_to_servers=True) for node in self.nodes}
        self.primary = self.a

    @property
    def standby(self) -> Node:
        return self.other(self.primary)

    def other(self, node: Node) -> Node:
        return self.b if node is self.a else self.a

    @property
    def conninfo(self) -> str:
        """Both hosts, and whichever of them writes: what a ledger is configured with."""
        return self.conninfo_through(*(str(node.folder) for node in self.nodes))

    @staticmethod
    def conninfo_through(*hosts: str) -> str:
        """The same by other ways, such as cables to the two."""
        return make_conninfo(
            "", host=",".join(hosts), user=OWNER, dbname=DATABASE, target_session_attrs="read-write",
            connect_timeout="2",
        )  # fmt: skip

    # -- both together

    def start(self, *, synchronous: bool = True) -> None:
        """`a` as the primary, `b` as its standby."""
        self.a.start()
        self.follow(self.b)
        if synchronous:
            self.make_synchronous()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        for cable in self._cables.values():
            cable.close()

    def make_synchronous(self) -> None:
        """From here on a commit of the primary is answered once its standby has it."""
        self.wait_for_standby()
        self.primary.configure("synchronous_standby_names", "*")

    def make_asynchronous(self) -> None:
        """From here on no standby is waited for."""
        self.primary.configure("synchronous_standby_names", "")

    def wait_for_standby(self) -> None:
        """Wait until the standby is connected and has all that the primary has now."""
        target = self.primary.written

        def caught_up() -> bool:
            ahead = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            return bool(self.primary.ask(ahead)) and self.standby.written >= target

        _until(caught_up, f"{self.standby.name} streams from {self.primary.name}")

    def isolate(self) -> None:
        """Cut the replication, and keep both alive."""
        for cable in self._cables.values():
            cable.pull()

    def reconnect(self) -> None:
        """The replication may go on."""
        for cable in self._cables.values():
            cable.plug()

    def promote(self, node: Node | None = None, *, synchronous: bool = False) -> Node:
        """Make the standby (or this one) the primary; the other is left as it is, alive or not.

        Without a standby of its own it waits for none, unless it shall be `synchronous` all the same.
        """
        chosen = node or self.standby
        chosen.configure("synchronous_standby_names", "*" if synchronous else "")
        chosen.promote()
        self.primary = chosen
        return chosen

    def follow(self, node: Node) -> None:
        """Start it as the standby of the other one."""
        leader = self._cables[self.other(node).name].conninfo
        node.start(follows=make_conninfo(leader, dbname="replication", application_name=node.name))

    def rebuild(self, node: Node | None = None) -> None:
        """Drop what it has, and make it a standby of the primary, through the cable."""
        chosen = node or self.standby
        assert chosen is not self.primary
        chosen.kill()
        self.reconnect()
        chosen.copy_from(self._cables[self.primary.name].conninfo)
        self.follow(chosen)
        self.wait_for_standby()


@contextmanager
def replica_folder_template() -> Generator[Path]:
    """A cold data folder with a migrated, empty ledger, to be copied for each pair."""
    with server_folder() as folder:
        with EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
            migrate(servers.postgres.dsn)
        yield folder / "data" / "postgres"


@contextmanager
def replicated(template: Path, *, synchronous: bool = True) -> Generator[Replicas]:
    """A running pair; nothing of it is left afterwards."""
    with server_folder() as folder:
        made = Replicas(folder, template)
        try:
            made.start(synchronous=synchronous)
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def replica_template() -> Iterator[Path]:
    """A cold data folder with a migrated, empty ledger."""
    with replica_folder_template() as made:
        yield made


@pytest.fixture
def replicated_postgres(replica_template: Path) -> Iterator[Replicas]:
    """A primary with a migrated, empty ledger, and its synchronous standby."""
    with replicated(replica_template) as made:
        yield made


def _children(pid: int) -> list[int]:
    if sys.platform != "linux":
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
        return [int(word) for word in found.stdout.split()]
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text(errors="replace").rsplit(")", 1)[1].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
