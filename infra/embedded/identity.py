"""The user that the embedded servers run as: the current one, or, for root, a user without other rights."""

import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

ACCOUNT = "keyledger"
# Above the ordinary accounts, below systemd's dynamic ones and nobody's.
FIRST_UNUSED_UID = 58_700
INITDB_ACCOUNTS = ("nobody", "daemon", "bin")


class Identity(NamedTuple):
    """A user and a group by number; `drops`: they are not those of this process."""

    uid: int
    gid: int
    drops: bool

    @classmethod
    def choose(cls, *, owned: Iterable[Path] = ()) -> Self:
        """This user; for root: the owner of these folders, the account `keyledger`, or an unused number."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), drops=False)
        for folder in owned:
            if folder.exists() and folder.stat().st_uid != 0:
                return cls(folder.stat().st_uid, folder.stat().st_gid, drops=True)
        if (account := _account(ACCOUNT)) is not None:
            return cls(account.pw_uid, account.pw_gid, drops=True)
        unused = _unused(FIRST_UNUSED_UID)
        return cls(unused, unused, drops=True)

    @classmethod
    def for_initdb(cls, chosen: Self) -> Self:
        """The user for PostgreSQL's initdb, which needs a name: if `chosen` has none, another user."""
        if not chosen.drops or _named(chosen.uid):
            return chosen
        for name in INITDB_ACCOUNTS:
            if (account := _account(name)) is not None and account.pw_uid != 0:
                return cls(account.pw_uid, account.pw_gid, drops=True)
        return chosen


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _unused(uid: int) -> int:
    while _named(uid):
        uid += 1
    return uid
