"""The shape of a secret: one description to generate, recognise, redact and document secrets."""

from __future__ import annotations

import re
import secrets
from functools import cached_property
from hashlib import sha256
from math import log2
from typing import Final, Literal
from zlib import crc32

import msgspec

BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HEX: Final = "0123456789abcdef"
ALPHABETS: Final = {"base62": BASE62, "hex": HEX}
CHECKSUM_LENGTH: Final = 6
MINIMUM_BITS: Final = 128

_PAIRS: Final = [first + second for first in BASE62 for second in BASE62]
_PAIR_COUNT: Final = len(_PAIRS)
"""Two digits at a time: under a flood of garbage the checksum is the main cost."""

_CLASSES: Final = {"base62": "[0-9A-Za-z]", "hex": "[0-9a-f]"}


def fingerprint(secret: str) -> bytes:
    """The SHA-256 that replaces a secret everywhere inside: 32 bytes."""
    return sha256(secret.encode()).digest()


def hint(secret: str, prefix: str) -> str:
    """What people may see of a secret: its prefix and its last four characters."""
    return f"{prefix}...{secret[-4:]}"


def checksum(payload: str) -> str:
    """CRC32 of the payload as six base62 digits, left-padded (the scheme of GitHub's tokens)."""
    high, low = divmod(crc32(payload.encode()), _PAIR_COUNT)
    high, middle = divmod(high, _PAIR_COUNT)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


class SecretFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The format of a secret after its prefix."""

    alphabet: Literal["base62", "hex"] = "base62"
    """The characters after the prefix."""
    length: int = 30
    """The number of random characters, without the checksum."""
    checksum: Literal["crc32"] | None = None
    """The checksum at the end, by which a mistyped secret is recognised; null: none."""

    @property
    def bits(self) -> float:
        """The randomness in bits."""
        return self.length * log2(len(ALPHABETS[self.alphabet]))


class AcceptedFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shape that imported secrets of a keyspace may have, besides its own."""

    prefix: str = ""
    """What such secrets begin with."""
    alphabet: Literal["base62", "hex"] = "base62"
    """The characters after the prefix."""
    min_length: int = 22
    """The fewest characters after the prefix."""
    max_length: int = 256
    """The most characters after the prefix."""

    @property
    def pattern(self) -> str:
        """A regular expression for it."""
        return f"{re.escape(self.prefix)}{_CLASSES[self.alphabet]}{{{self.min_length},{self.max_length}}}"


class SecretShape(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A keyspace's secrets: prefix, format, and the formats of imported secrets."""

    prefix: str
    """What secrets begin with."""
    format: SecretFormat
    """The format after the prefix."""
    accepted: tuple[AcceptedFormat, ...] = ()
    """Further shapes that the secrets of imported keys may have."""

    def generate(self) -> str:
        """Make a new secret from the operating system's randomness."""
        alphabet = ALPHABETS[self.format.alphabet]
        body = "".join(secrets.choice(alphabet) for _ in range(self.format.length))
        return self.prefix + body + (checksum(body) if self.format.checksum else "")

    @cached_property
    def _own(self) -> re.Pattern[str]:
        return re.compile(self._own_pattern, re.ASCII)

    @property
    def _own_pattern(self) -> str:
        body = f"{_CLASSES[self.format.alphabet]}{{{self.format.length}}}"
        tail = f"{_CLASSES['base62']}{{{CHECKSUM_LENGTH}}}" if self.format.checksum else ""
        return re.escape(self.prefix) + body + tail

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """Matches a whole secret of the keyspace's own or an accepted shape (use `fullmatch`)."""
        patterns = [self._own_pattern, *(one.pattern for one in self.accepted)]
        return re.compile("|".join(patterns), re.ASCII)

    def looks_right(self, secret: str) -> bool:
        """Whether prefix, alphabet and length match; the checksum is not compared (that costs more)."""
        return self.regex.fullmatch(secret) is not None

    def checksum_is_right(self, secret: str) -> bool:
        """Whether a secret that looks right is complete and without a typing mistake.

        A secret of an accepted format has no checksum of this keyspace, so the answer is always yes.
        """
        if self.format.checksum is None:
            return True
        if self.accepted and (
            self._own.fullmatch(secret) is None
            or any(re.fullmatch(one.pattern, secret) for one in self.accepted)
        ):
            return True
        body = secret[len(self.prefix) : -CHECKSUM_LENGTH]
        return checksum(body) == secret[-CHECKSUM_LENGTH:]

    def recognises(self, secret: str) -> bool:
        """Whether this could be a secret of the keyspace. Decided without any look-up."""
        return self.looks_right(secret) and self.checksum_is_right(secret)

    @cached_property
    def anywhere(self) -> re.Pattern[str]:
        """Finds such secrets in text, whatever surrounds them.

        Anyone can compute the checksum, so a secret without it counts as one, too; letters and digits that
        follow may belong to a longer, imported secret.
        """
        own = f"{re.escape(self.prefix)}{_CLASSES[self.format.alphabet]}{{{self.format.length}}}"
        patterns = [own, *(one.pattern for one in self.accepted)]
        return re.compile(f"(?:{'|'.join(patterns)})[0-9A-Za-z]*", re.ASCII)

    def describe(self) -> str:
        """One line for people, such as `kl_live_ + 30 base62 + CRC32 as 6 base62`."""
        tail = f" + CRC32 as {CHECKSUM_LENGTH} base62" if self.format.checksum else ""
        return f"{self.prefix} + {self.format.length} {self.format.alphabet}{tail}"


def redact(text: str, shapes: tuple[SecretShape, ...]) -> str:
    """The text with every secret of these shapes replaced by its prefix and `[redacted]`."""
    for shape in shapes:
        text = shape.anywhere.sub(f"{shape.prefix}[redacted]", text)
    return text
