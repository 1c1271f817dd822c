"""Become the server: drop root, arrange to die with the parent, and exec. Run as a script of its own.

A child of its own does this instead of `preexec_fn`, because Python code between fork and exec may
deadlock in a parent that has threads. It imports no package of the ledger, so it starts in 15 ms.
"""

import ctypes
import json
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 1, 8, 28, 47
SECBIT_NO_SETUID_FIXUP = 4
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522
LINUX = sys.platform == "linux"


def prctl(option: int, value: int = 0, *more: int) -> int:
    """Call prctl; all words are passed, because the kernel checks the unused ones, too."""
    arguments = [ctypes.c_ulong(word) for word in (value, *more, 0, 0, 0)[:4]]
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, *arguments))


def keep(capability: int | None) -> bool:
    """Keep this capability and no other, and pass it to the program; None drops all."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable of the low 32, then of the high 32
    held = (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    bits = 0 if capability is None else 1 << capability
    # Permitted keeps what a later try may need; exec drops every capability that is not ambient.
    permitted = held[1] & (1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if bits & ~permitted or libc.capset(header, (ctypes.c_uint32 * 6)(bits, permitted, bits, 0, 0, 0)) != 0:
        return False
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    return capability is None or prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability) == 0


def become(uid: int, gid: int) -> None:
    """Drop root for good, except the right to pass through closed folders, which `keep` decides on."""
    if LINUX:
        # The first keeps capabilities across setuid. With the second, access() respects them, too: initdb
        # uses it to check that its programs exist.
        prctl(PR_SET_KEEPCAPS, 1)
        prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def start(folder: str, argv: list[str]) -> None:
    """Replace this process by the server."""
    os.chdir(folder)
    os.execv(argv[0], argv)  # noqa: S606 - a program from a wheel, deliberately without a shell


def main() -> None:
    """Do all of it, or exit with a one-sentence reason."""
    job = json.loads(sys.argv[1])
    os.umask(0o077)
    ways: list[int | None] = [None]
    if job["drops"]:
        become(job["uid"], job["gid"])
        # Below a folder that only root may enter (such as a checkout in /root), the server keeps the right
        # to read through it, so that the folder need not be opened to all users.
        ways = [None, CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE] if LINUX else [None]
    if LINUX:
        # After setuid, which clears it; before the check, so that a parent that ends in between is noticed.
        prctl(PR_SET_PDEATHSIG, job["signal"])
    if os.getppid() != job["parent"]:
        sys.exit("FATAL: the keyledger that started this has ended")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    error: OSError | None = None
    for way in ways:
        if job["drops"] and LINUX and not keep(way):
            continue
        try:
            start(job["folder"], job["argv"])
        except PermissionError as refused:
            error = refused
    reason = error.strerror if error is not None else "no right to pass through root's folders"
    sys.exit(f"FATAL: user {os.geteuid()} cannot access {job['argv'][0]} and {job['folder']}: {reason}")


if __name__ == "__main__":
    try:
        main()
    except OSError as failed:
        sys.exit(f"FATAL: cannot start {failed.filename or ''}: {failed.strerror}")
