"""Logins of edges at NATS: one NATS user for each root key.

NATS asks the ledger about every user that it does not know itself (its auth callout). The answer is that
user's permissions, signed with the account key that NATS was configured with. So root keys that are made
later need no new configuration, and with a root key that no longer works no edge can log in.
"""

from __future__ import annotations

import base64
import hmac
import os
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import nkeys

from keyledger_language import CHANGES_SUBJECT, GRANT_SUBJECT, LEASE_SUBJECT

LOGIN_SUBJECT: Final = "$SYS.REQ.USER.AUTH"
GLOBAL_ACCOUNT: Final = "$G"
LOGIN_SECONDS: Final = 3_600
"""Then NATS asks again, and refuses a root key that stopped working; its edges lost their leases at once."""

_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_PURPOSE: Final = b"nats user\0"
_VERSION: Final = 2


class _Server(msgspec.Struct):
    id: str


class _Shown(msgspec.Struct):
    user: str = ""
    password: str = msgspec.field(default="", name="pass")


class _Asked(msgspec.Struct):
    server_id: _Server
    user_nkey: str
    connect_opts: _Shown


class _Question(msgspec.Struct):
    nats: _Asked


class IssuerSeedError(Exception):
    """The text is not the seed of an account key."""


class EdgeLogins:
    """Decides who may log in at NATS as an edge; passwords are derived, and stored nowhere."""

    def __init__(
        self,
        seed: str,
        *,
        account: str = GLOBAL_ACCOUNT,
        secret: Callable[[], bytes | None],
        may_connect: Callable[[str], bool],
        decides: Callable[[], bool],
    ) -> None:
        """`secret` returns the ledger's, once known; `decides` whether a refusal by this process is final."""
        self._key = _account_key(seed)
        self._issuer = issuer_of(seed)
        self._account = account
        self._secret = secret
        self._may_connect = may_connect
        self._decides = decides

    def password_of(self, root_key_id: str) -> str | None:
        """The password of this root key's edges; None while the ledger's own secret is not known."""
        secret = self._secret()
        if secret is None:
            return None
        return _text(hmac.digest(secret, _PURPOSE + root_key_id.encode(), "sha256"))

    def answer(self, question: bytes) -> bytes | None:
        """The answer to a login question of NATS; None if another process may know more."""
        asked = _read(question)
        if asked is None:
            return None
        root_key_id = asked.connect_opts.user
        password = self.password_of(root_key_id)
        if password is None:
            return None
        knows = hmac.compare_digest(asked.connect_opts.password.encode(), password.encode())
        if knows and self._may_connect(root_key_id):
            return self._response(asked, {"jwt": self._user(asked.user_nkey, root_key_id)})
        return self._response(asked, {"error": "This is no login of an edge."}) if self._decides() else None

    def _user(self, user_nkey: str, root_key_id: str) -> str:
        return self._signed(
            {
                "sub": user_nkey,
                "aud": self._account,
                "name": root_key_id,
                "exp": int(time.time()) + LOGIN_SECONDS,
                "nats": {
                    "type": "user",
                    "version": _VERSION,
                    "pub": {"allow": [f"{LEASE_SUBJECT}.{root_key_id}"]},
                    "sub": {"allow": [CHANGES_SUBJECT, f"{GRANT_SUBJECT}.{root_key_id}.>"]},
                    # nats-server does not enforce these for users from an auth callout: see edge_ears.py.
                    "subs": -1,
                    "data": -1,
                    "payload": -1,
                },
            }
        )

    def _response(self, asked: _Asked, said: dict[str, str]) -> bytes:
        return self._signed(
            {
                "sub": asked.user_nkey,
                "aud": asked.server_id.id,
                "nats": {"type": "authorization_response", "version": _VERSION, **said},
            }
        ).encode()

    def _signed(self, claims: dict[str, Any]) -> str:
        known = {"iss": self._issuer, "iat": int(time.time()), "jti": _text(os.urandom(16)), **claims}
        body = f"{_text(msgspec.json.encode(_HEADER))}.{_text(msgspec.json.encode(known))}"
        return f"{body}.{_text(self._key.sign(body.encode()))}"


def new_issuer_seed() -> str:
    """The seed of a new account key, for the configuration of an embedded NATS."""
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_ACCOUNT)).decode()


def issuer_of(seed: str) -> str:
    """The public half, which NATS is configured with; IssuerSeedError if the seed has none."""
    return bytes(_account_key(seed).public_key).decode()


def _account_key(seed: str) -> nkeys.KeyPair:
    try:
        key = nkeys.from_seed(bytearray(seed.encode()))
    except Exception:  # noqa: BLE001 - nkeys raises errors of several libraries
        key = None
    if key is None or not bytes(key.public_key).startswith(b"A"):
        # Without the cause: it may show the seed.
        raise IssuerSeedError("This is not the seed of an account key: such a seed begins with SA.") from None
    return key


def _read(question: bytes) -> _Asked | None:
    try:
        payload = question.split(b".")[1]
        return msgspec.json.decode(
            base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)), type=_Question
        ).nats
    except (IndexError, ValueError, msgspec.MsgspecError):
        return None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
