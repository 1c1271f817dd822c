"""Answers kept for their `Idempotency-Key` may contain personal fields, so the log gets them encrypted.

The key is that of the organization that an answer is about: when the organization is forgotten, so is the
answer. The digest of the request is encrypted with it, since a guessed name could be tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from domain.personal import PLATFORM
from domain.ports import NewClaim
from services.ledger.jobs import DataKeyring

_MARK: Final = b"keyledger answer 1\0"
"""An answer without it was kept before answers were encrypted: it begins with a random digest, and is
read as it is."""


class _Closed(msgspec.Struct, array_like=True, frozen=True):
    subject: str
    box: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Closed).decode


def close_answers(
    claims: Sequence[NewClaim], subjects: Mapping[bytes, str], keyring: DataKeyring
) -> list[NewClaim]:
    """The claims as the log gets them. `subjects`: by claim, whose data key the kept answer needs."""
    return [
        one if one.answer is None else one._replace(answer=_close(one, subjects[one.digest], keyring))
        for one in claims
    ]


def subject_of(kept: bytes) -> str | None:
    """The subject whose data key this answer needs; None if it is not encrypted."""
    return _decode(kept[len(_MARK) :]).subject if kept.startswith(_MARK) else None


def open_answer(digest: bytes, kept: bytes, keyring: DataKeyring) -> bytes | None:
    """The answer, decrypted; None if its data key was deleted."""
    if not kept.startswith(_MARK):
        return kept
    closed = _decode(kept[len(_MARK) :])
    return keyring.decrypt(closed.subject, closed.box, _context(digest))


def _close(claim: NewClaim, subject: str, keyring: DataKeyring) -> bytes:
    assert claim.answer is not None, "only kept answers are encrypted"
    context = _context(claim.digest)
    # An organization gets its key with its first event, never here, even if it has none (any more).
    box = keyring.encrypt(subject, claim.answer, context) if keyring.knows(subject) else None
    if box is None:
        subject, box = PLATFORM, keyring.encrypt(PLATFORM, claim.answer, context)
    if box is None:
        raise LookupError("The platform's data key was deleted: no answer can be kept.")
    return _MARK + _encode(_Closed(subject, box))


def _context(digest: bytes) -> str:
    """Binds an answer to its own claim: it can be decrypted for no other."""
    return f"answer/{digest.hex()}"
