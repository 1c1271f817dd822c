"""A keyspace: the keys of one gateway, their shape and their manners."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import msgspec

from keyledger_language import AcceptedFormat, SecretFormat, SecretShape
from keyledger_language.instants import Instant

ROOT_PREFIX = "kl_root_"
ROOT_KEYSPACE_ID = "ks_00000000000000000000000000"
"""The built-in keyspace of root keys: the same in every ledger."""

MINIMUM_BITS = 128
"""Randomness of a secret: with less, a plain SHA-256 would not be enough (ASVS 5.0, 6.5.2)."""

DIMENSIONS = ("permission", "project", "model", "tenant")


class Keyspace(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The present state of one keyspace."""

    id: str
    name: str
    preset: str | None
    prefix: str
    secret_format: SecretFormat
    accepted_formats: tuple[AcceptedFormat, ...] = ()
    credential_locations: tuple[str, ...] = ()
    tenant_locations: dict[str, str] = {}
    denial_status: dict[str, int] = {}
    require_balance: bool = False
    required_dimensions: tuple[str, ...] = ()
    builtin: bool = False
    used: bool = False
    """Was there ever a key in it? Then secrets with its prefix are about, for good."""
    archived: bool = False
    created_at: Instant = 0
    version: int = 1
    position: int = 0

    @cached_property
    def shape(self) -> SecretShape:
        """What its secrets look like, compiled once per state of it."""
        return SecretShape(prefix=self.prefix, format=self.secret_format, accepted=self.accepted_formats)


_GAP = re.compile(r"[.*\u2026\u2022]+")
"""What stands in a hint for the part that nobody may see."""
_OF_A_SECRET = re.compile(r"[0-9A-Za-z_-]*")
_ALPHABETS = {"base62": re.compile(r"[0-9A-Za-z]*"), "hex": re.compile(r"[0-9a-f]*")}


def why_unfit(keyspace: Keyspace, hint: str | None) -> str | None:
    """Why a secret of which this is known can be none of the keyspace's; None where it may be one.

    Its SHA-256 tells nothing of its shape, so its hint is what is looked at: where it begins, and where it
    ends. Where imported secrets have no shape of their own (`accepted_formats`), the hint must say that
    this one has the keyspace's: with the wrong shape the key would be `malformed` for ever.
    """
    shape = keyspace.shape
    head, tail = _ends_in(hint or "")
    if not keyspace.accepted_formats and not head.startswith(keyspace.prefix):
        return (
            f"the keyspace accepts only {shape.describe()}: say by the hint that the secret is one, such as "
            f"{keyspace.prefix}...x7Qd, or add its shape to the keyspace's accepted_formats"
        )
    own = AcceptedFormat(
        prefix=keyspace.prefix,
        alphabet="base62" if keyspace.secret_format.checksum else keyspace.secret_format.alphabet,
    )
    if any(_may_have_ends(one, head, tail) for one in (own, *keyspace.accepted_formats)):
        return None
    return "no secret that the keyspace accepts begins and ends so"


def _ends_in(hint: str) -> tuple[str, str]:
    """How a secret begins and ends, as far as a hint says. Without a gap it says one of the two."""
    parts = _GAP.split(hint)
    if not all(_OF_A_SECRET.fullmatch(part) for part in parts):
        return "", ""  # words for people
    if len(parts) > 1:
        return parts[0], parts[-1]
    return ("", hint) if hint.isalnum() else (hint, "")


def _may_have_ends(shape: AcceptedFormat, head: str, tail: str) -> bool:
    if not (head.startswith(shape.prefix) or shape.prefix.startswith(head)):
        return False
    seen = head[len(shape.prefix) :] + tail[-shape.min_length :]
    return _ALPHABETS[shape.alphabet].fullmatch(seen) is not None


def prefixes_overlap(one: str, other: str) -> bool:
    """Could a secret of one be taken for a secret of the other?"""
    return one.startswith(other) or other.startswith(one)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "prefix": "kl_live_",
        "secret_format": SecretFormat(alphabet="base62", length=30, checksum="crc32"),
        "credential_locations": ("header:Authorization:Bearer", "header:X-API-Key"),
    },
    "leanmcp": {
        "prefix": "leanmcp_",
        "secret_format": SecretFormat(alphabet="hex", length=64),
        "credential_locations": ("header:Authorization:Bearer",),
        "require_balance": True,
    },
    "mindproxy": {
        "prefix": "sk-",
        "secret_format": SecretFormat(alphabet="base62", length=48),
        "credential_locations": (
            "header:Authorization:Bearer",
            "header:x-api-key",
            "query:key",
        ),
        "denial_status": {"api_key_quota_exceeded": 402, "billing_shortfall": 402},
        "require_balance": True,
    },
    "leapter": {
        "prefix": "lpt_",
        "secret_format": SecretFormat(alphabet="base62", length=40),
        "credential_locations": ("header:X-API-Key",),
        "denial_status": {"project_denied": 403},
        "required_dimensions": ("project",),
    },
    "leadmagic": {
        "prefix": "lm_",
        "secret_format": SecretFormat(alphabet="base62", length=30, checksum="crc32"),
        "credential_locations": ("header:x-leadmagic-key",),
        "denial_status": {
            "billing_shortfall": 403,
            "api_key_quota_exceeded": 403,
            "project_quota_exceeded": 403,
            "organization_quota_exceeded": 403,
        },
        "require_balance": True,
    },
    "allmcp": {
        "prefix": "allmcp_",
        "secret_format": SecretFormat(alphabet="base62", length=32),
        "credential_locations": ("header:X-API-Key", "header:Authorization:Bearer"),
        "denial_status": {"tenant_denied": 403},
        "tenant_locations": {"org_id": "query:org_id", "user_id": "query:user_id"},
    },
}
"""The presets that ship, by name."""

ROOT_SHAPE = SecretShape(prefix=ROOT_PREFIX, format=PRESETS["default"]["secret_format"])
"""What the secret of a root key looks like."""
