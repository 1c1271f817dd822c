"""Keys that encrypt personal fields: one per organization, so that each can be forgotten on its own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from psycopg import Connection
from psycopg.rows import tuple_row

from domain.ports import DataKeyError, NewDataKey
from infra.postgres.arrays import TextArray
from keyledger_language.bounded_dicts import BoundedCache

_KEY_BYTES: Final = 32
WRAPPED_BYTES: Final = 40
_NONCE_BYTES: Final = 12
_FORGOTTEN: Final = b""
"""Stored in place of the key of a subject that was forgotten: it never gets another one."""
_CIPHERS_KEPT: Final = 20_000


class MasterKeyError(DataKeyError):
    """The data keys cannot be unwrapped."""


class DataKeys:
    """The data keys of this process, by subject: an organization's id, or `platform`.

    With a master key (32 bytes) they are stored wrapped (AES key wrap, RFC 3394), otherwise in
    plain form: anyone who can read the table `data_keys` can then read the personal fields, too.
    Keys that were stored before a master key was set stay readable.
    """

    def __init__(self, master_key: bytes | None = None) -> None:
        if master_key is not None and len(master_key) != _KEY_BYTES:
            raise MasterKeyError("The master key must have 32 bytes.")
        self._master_key = master_key
        self._stored: dict[str, bytes] = {}
        self._ciphers = BoundedCache[str, AESGCM](_CIPHERS_KEPT)
        """Of keys that were used: a cipher takes 2.5 KB, and longer to create than to use."""
        self._new: list[NewDataKey] = []

    def learn(self, stored: Mapping[str, bytes]) -> None:
        """Add data keys as the log stores them. Raises MasterKeyError if they need another master key."""
        wrapped = next((material for material in stored.values() if len(material) == WRAPPED_BYTES), None)
        if wrapped is not None:
            self._unwrapped(wrapped)
        for subject, material in stored.items():
            self._stored.setdefault(subject, material)

    def take_new(self) -> tuple[NewDataKey, ...]:
        """The keys that were created since the last call: they are to be written in the same group."""
        new, self._new = tuple(self._new), []
        return new

    def forget(self, subjects: Iterable[str]) -> None:
        """Remove keys from memory: their group was not written, or they were deleted."""
        gone = frozenset(subjects)
        for subject in gone:
            self._ciphers.drop(subject)
            self._stored.pop(subject, None)
        self._new = [key for key in self._new if key.subject not in gone]

    def forget_all(self) -> None:
        """Remove all keys: the log lost events, and the keys that came with them; learn them again."""
        self._stored.clear()
        self._ciphers.clear()
        self._new.clear()

    def knows(self, subject: str) -> bool:
        """Whether this process has the subject's key, or knows that the subject was forgotten."""
        return subject in self._stored

    def encrypt(self, subject: str, plaintext: bytes, context: str) -> bytes | None:
        """Nonce and ciphertext, bound to its context; a key is created if the subject has none.

        None if the subject was forgotten: nothing of it may be kept.
        """
        cipher = self._cipher(subject)
        if cipher is None:
            if subject in self._stored:
                return None
            cipher = self._make(subject)
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, plaintext, context.encode())

    def decrypt(self, subject: str, ciphertext: bytes, context: str) -> bytes | None:
        """The plaintext, or None if the subject has no key (any more). Raises MasterKeyError."""
        cipher = self._cipher(subject)
        if cipher is None:
            return None
        try:
            return cipher.decrypt(ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:], context.encode())
        except InvalidTag:
            raise MasterKeyError(f"The personal fields of {context} do not match their data key.") from None

    def _cipher(self, subject: str) -> AESGCM | None:
        cipher = self._ciphers.get(subject)
        stored = self._stored.get(subject, _FORGOTTEN)
        if cipher is None and stored != _FORGOTTEN:
            cipher = AESGCM(self._unwrapped(stored))
            self._ciphers.put(subject, cipher)
        return cipher

    def _make(self, subject: str) -> AESGCM:
        material = os.urandom(_KEY_BYTES)
        stored = self._stored[subject] = self._wrapped(material)
        self._new.append(NewDataKey(subject, stored))
        cipher = AESGCM(material)
        self._ciphers.put(subject, cipher)
        return cipher

    def _wrapped(self, material: bytes) -> bytes:
        return material if self._master_key is None else aes_key_wrap(self._master_key, material)

    def _unwrapped(self, material: bytes) -> bytes:
        if len(material) != WRAPPED_BYTES:
            return material
        if self._master_key is None:
            raise MasterKeyError(
                "The data keys are wrapped, and no master key is set: set KEYLEDGER_MASTER_KEY as it was."
            )
        try:
            return aes_key_unwrap(self._master_key, material)
        except InvalidUnwrap:
            raise MasterKeyError(
                "The data keys are wrapped with another master key: set KEYLEDGER_MASTER_KEY to that one."
            ) from None


def select_data_keys(
    connection: Connection[Any], subjects: Collection[str] | None = None
) -> dict[str, bytes]:
    """The data keys, in the form in which they are stored: all, or those of some subjects that have one."""
    cursor = connection.cursor(row_factory=tuple_row, binary=True)
    select = "SELECT subject, material FROM ledger.data_keys"
    if subjects is None:
        return dict(cursor.execute(select.encode()).fetchall())
    some = f"{select} WHERE subject = ANY(%s)".encode()
    return dict(cursor.execute(some, (TextArray(list(subjects)),), prepare=True).fetchall())
