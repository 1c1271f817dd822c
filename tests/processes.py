"""Processes that tests start end with the tests, also when these are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# As infra/embedded/launcher.py, for programs that change no user: the kernel is asked, then the parent
# looked for, lest it died in between. Where there is no such kernel the tests' own clean-up has to do.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def ending_with_us(argv: Sequence[str]) -> list[str]:
    """The command line of a program that is killed when the process that starts it ends.

    Start it from the main thread, or with `start_with_us`: the kernel minds the thread that forked.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv]


_starter = ThreadPoolExecutor(1, "starts programs")
"""Its thread ends with the tests; one of an event loop's ends with the loop, and took a ledger with it."""


def start_with_us(argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start such a program, from whatever thread."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(ending_with_us(argv), text=True, **options)

    return _starter.submit(start).result()
