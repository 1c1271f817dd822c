"""Processes that tests start end with the tests, also when these are killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

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

    Start it from the main thread: the kernel minds the thread that forked.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv]
