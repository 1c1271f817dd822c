"""A cable to PostgreSQL that can be pulled out, before or after the server has answered."""

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from typing import Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

Fault = Literal["none", "lose_question", "lose_answer"]
SOCKET = ".s.PGSQL.5432"


class Cable:
    """Forwards a unix socket to the server's, connection by connection."""

    def __init__(self, conninfo: str, *, open_to_servers: bool = False) -> None:
        given = conninfo_to_dict(conninfo)
        self._server = str(Path(str(given["host"])) / f".s.PGSQL.{given.get('port') or 5432}")
        self._folder = tempfile.TemporaryDirectory(prefix="cable-", dir="/tmp")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder.name) / SOCKET))
        if open_to_servers:
            # A standby runs as a user of its own when we are root.
            Path(self._folder.name).chmod(0o711)
            (Path(self._folder.name) / SOCKET).chmod(0o777)
        self._listener.listen(50)
        self._open: list[socket.socket] = []
        self.plugged = True
        self.fault: Fault = "none"
        self.folder = self._folder.name
        self.conninfo = make_conninfo(conninfo, host=self.folder, port="5432")
        threading.Thread(target=self._accept, daemon=True).start()

    def pull(self) -> None:
        """Break all connections, and refuse new ones."""
        self.plugged = False
        self._break_all()

    def plug(self) -> None:
        """Let connections through again."""
        self.plugged = True

    def close(self) -> None:
        self.pull()
        _shut(self._listener)  # wakes the thread that accepts
        self._listener.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                # Before it is looked at: a pull that comes now breaks it.
                self._open += [client, server]
                if not self.plugged or not self._reaches(server):
                    server.close()
                    client.close()
                    continue
                threading.Thread(
                    target=self._carry, args=(client, server, "lose_question"), daemon=True
                ).start()
                threading.Thread(
                    target=self._carry, args=(server, client, "lose_answer"), daemon=True
                ).start()

    def _reaches(self, server: socket.socket) -> bool:
        try:
            server.connect(self._server)
        except OSError:
            return False  # nobody is there just now: as refused as without a cable
        return True

    def _carry(self, source: socket.socket, target: socket.socket, fault: Fault) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                if self.fault == fault:
                    self.fault = "none"
                    break
                target.sendall(data)
            _shut(source)
        _shut(target)

    def _break_all(self) -> None:
        while self._open:
            _shut(self._open.pop())


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
