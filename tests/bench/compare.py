"""Two checkouts as a user has them, in turns: what did a change cost, or gain?

    python -m tests.bench.compare --old ../keyledger-before --new .

Each checkout has its own `.venv` (`make check` makes it) and runs `keyledger up`: embedded PostgreSQL and
NATS, worker and disk included. wrk (Debian's) asks the one, then the other, and the next pair the other
way round. Only on a machine at rest: whatever else runs slows both, and flatters whatever differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

KEYS: Final = 800
STARTS_WITHIN_SECONDS: Final = 60.0
STOPS_WITHIN_SECONDS: Final = 20.0
WIDE_SPREAD: Final = 0.03
"""A result whose quartiles are further apart than this says nothing."""


class Cell(NamedTuple):
    """One thing that is measured."""

    name: str
    connections: int
    script: str


@dataclass(slots=True)
class Side:
    """One of the two checkouts, running."""

    name: str
    checkout: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    setup: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = os.environ | {
            "KEYLEDGER_DATA_DIR": str(self.folder / "data"),
            "KEYLEDGER_PORT": str(self.port),
        }
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [self.checkout / ".venv/bin/keyledger", "up"],
                cwd=self.checkout, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while not self._ready():
            assert time.monotonic() < end, f"{self.name} is not ready: {self.folder / 'output'}"
            time.sleep(0.1)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200 and (self.folder / "data/root-key").exists())
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOPS_WITHIN_SECONDS)

    @property
    def root_key(self) -> str:
        return (self.folder / "data/root-key").read_text(encoding="utf-8").strip()

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.root_key}", "Content-Type": "application/json"},
        )
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                # Right after a start: management may not reach PostgreSQL yet.
                if error.code != 503 or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def cpu_seconds(self) -> float:
        """What all processes below `keyledger up` have used."""
        assert self.process is not None, "it was started"
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(_ticks(pid) for pid in _family(self.process.pid)) / ticks


def _stat(pid: str | int) -> list[str]:
    """/proc/<pid>/stat behind the command's name: state, parent, ..."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return text.rpartition(")")[2].split()
    return []


def _ticks(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _family(root: int) -> set[int]:
    stats = {int(one.name): _stat(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()}
    found = {root}
    while more := {pid for pid, stat in stats.items() if stat and int(stat[1]) in found} - found:
        found |= more
    return found


# -- what is asked


def cells(side: Side) -> list[Cell]:
    """Make what is needed, and the scripts for wrk."""
    keyspace = side.ask("/v1/keyspaces", {"name": "bench", "preset": "default", "prefix": "kl_bench_"})["id"]
    organization = side.ask("/v1/organizations", {"name": "Bench"})["id"]
    credit = {"amount_micros": 10**15, "reference": "bench"}
    side.ask(f"/v1/organizations/{organization}/wallet/credits", credit)
    asked = {"keyspace_id": keyspace, "organization_id": organization, "name": "bench"}
    made = [side.ask("/v1/keys", asked) for _ in range(KEYS)]
    verify = [json.dumps({"secret": one["secret"], "keyspace_id": keyspace}) for one in made]
    charges = [
        json.dumps({"key_id": one["key"]["id"], "request_id": "@", "amount_micros": 1, "model": "gpt-5"})
        for one in made
    ]
    return [
        Cell("verify, hot key", 16, side_script(side, "hot", "/v1/verify", verify[:1])),
        Cell("verify, 800 keys", 64, side_script(side, "many", "/v1/verify", verify)),
        Cell("charge", 16, side_script(side, "few", "/v1/charges", charges)),
        Cell("charge", 64, side_script(side, "more", "/v1/charges", charges)),
    ]


def side_script(side: Side, name: str, path: str, bodies: list[str]) -> str:
    """A wrk script that sends these bodies in turn; `@` is a request id that nothing else has."""
    script = side.folder / f"{name}.lua"
    listed = ",\n".join(f"'{body}'" for body in bodies)
    script.write_text(
        f"""
local bodies = {{{listed}}}
local count, run = 0, ""
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer {side.root_key}"
wrk.headers["Content-Type"] = "application/json"
function init(arguments) run = arguments[1] end
function request()
  count = count + 1
  local body = bodies[count % #bodies + 1]:gsub("@", run .. "-" .. count)
  return wrk.format(nil, "{path}", nil, body)
end
""",
        encoding="utf-8",
    )
    script.chmod(0o600)
    return str(script)


@dataclass(slots=True)
class Run:
    """What one run of wrk reached."""

    per_second: float
    cpu_us: float
    """Of all of the ledger's processes, per answer."""


def measure(side: Side, cell: Cell, seconds: int) -> Run:
    """Ask for so long."""
    before = side.cpu_seconds()
    run = ["wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "-s", cell.script, side.url]
    # The last word begins the request ids of this run.
    told = subprocess.run(
        [*run, "--", secrets.token_hex(8)], capture_output=True, text=True, check=True
    ).stdout
    used = side.cpu_seconds() - before
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    assert refused is None, told
    count = int(re.search(r"(\d+) requests in", told)[1])  # type: ignore[index]  # wrk always says it
    return Run(float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]), used / count * 1e6)  # type: ignore[index]  # likewise


# -- telling


def quartiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def tell(name: str, old: list[Run], new: list[Run]) -> None:
    told = [name]
    for old_figures, new_figures in (
        ([one.per_second for one in old], [one.per_second for one in new]),
        ([one.cpu_us for one in old], [one.cpu_us for one in new]),
    ):
        ratios = [after / before for before, after in zip(old_figures, new_figures, strict=True)]
        told += [f"{median(old_figures):,.0f}", f"{median(new_figures):,.0f}", spread(ratios)]
    print(f"| {' | '.join(told)} |", flush=True)


def spread(ratios: list[float]) -> str:
    low, high = quartiles(ratios)
    middle = median(ratios)
    noisy = " (too wide)" if (high - low) / middle > WIDE_SPREAD else ""
    return f"{middle:.3f} ({low:.3f} to {high:.3f}){noisy}"


@contextlib.contextmanager
def running(checkouts: dict[str, Path]) -> Generator[list[Side]]:
    with tempfile.TemporaryDirectory(prefix="klc") as folder, contextlib.ExitStack() as last:
        sides: list[Side] = []
        for name, checkout in checkouts.items():
            place = Path(folder) / name
            place.mkdir()
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            side = Side(name, checkout.resolve(), place, port)
            last.callback(side.stop)
            side.start()
            sides.append(side)
        yield sides


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--new", type=Path, default=Path())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=4, help="how long each run of wrk takes")
    arguments = parser.parse_args()
    with running({"old": arguments.old, "new": arguments.new}) as (old, new):
        todo = list(zip(cells(old), cells(new), strict=True))
        print("| | old /s | new /s | of old (quartiles) | old CPU us | new CPU us | of old (quartiles) |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for cell, other in todo:
            measure(old, cell, 1)
            measure(new, other, 1)
            runs: dict[str, list[Run]] = {"old": [], "new": []}
            for pair in range(arguments.pairs):
                turns = [(old, cell), (new, other)]
                for side, asked in turns if pair % 2 == 0 else reversed(turns):
                    runs[side.name].append(measure(side, asked, arguments.seconds))
            tell(f"{cell.name}, {cell.connections} connections", runs["old"], runs["new"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
