"""A keyspace: the keys of one gateway, the shape of their secrets, and the gateway's conventions."""

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
"""The least randomness of a secret: with less, a plain SHA-256 would not be enough (ASVS 5.0, 6.5.2)."""

DIMENSIONS = ("permission", "project", "model", "tenant")


class Keyspace(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The current state of one keyspace."""

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
    """Whether it has ever had a key: then secrets with its prefix are in circulation for good."""
    archived: bool = False
    created_at: Instant = 0
    version: int = 1
    position: int = 0

    @cached_property
    def shape(self) -> SecretShape:
        """The shape of its secrets, compiled once for each state of the keyspace."""
        return SecretShape(prefix=self.prefix, format=self.secret_format, accepted=self.accepted_formats)


_GAP = re.compile(r"[.*\u2026\u2022]+")
"""What a hint has in place of the hidden part."""
_OF_A_SECRET = re.compile(r"[0-9A-Za-z_-]*")
_ALPHABETS = {"base62": re.compile(r"[0-9A-Za-z]*"), "hex": re.compile(r"[0-9a-f]*")}


def why_unfit(keyspace: Keyspace, hint: str | None) -> str | None:
    """Why a secret with this hint cannot belong to the keyspace; None if it may.

    A secret's SHA-256 reveals nothing of its shape, so its hint is checked: how the secret begins and
    ends. If the keyspace has no `accepted_formats` for imported secrets, the hint must show that this one
    has the keyspace's own shape: with a wrong shape the key would be `malformed` for ever.
    """
    shape = keyspace.shape
    head, tail = _ends_in(hint or "")
    if not keyspace.accepted_formats and not head.startswith(keyspace.prefix):
        return (
            f"the keyspace accepts only {shape.describe()}: give a hint that shows this shape, such as "
            f"{keyspace.prefix}...x7Qd, or add the secret's shape to the keyspace's accepted_formats"
        )
    own = AcceptedFormat(
        prefix=keyspace.prefix,
        alphabet="base62" if keyspace.secret_format.checksum else keyspace.secret_format.alphabet,
    )
    if any(_may_have_ends(one, head, tail) for one in (own, *keyspace.accepted_formats)):
        return None
    return "no secret that the keyspace accepts begins and ends like this"


def _ends_in(hint: str) -> tuple[str, str]:
    """How a secret begins and ends, as far as a hint shows. Without a gap it shows only one of the two."""
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
    """Whether a secret of one could be mistaken for a secret of the other."""
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
"""The built-in presets, by name."""

ROOT_SHAPE = SecretShape(prefix=ROOT_PREFIX, format=PRESETS["default"]["secret_format"])
"""The shape of a root key's secret."""
