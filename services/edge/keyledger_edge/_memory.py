"""What an edge remembers of keys: packed small, bounded, and only digests of secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from keyledger_language import codes
from keyledger_language.facts import KeyFacts
from keyledger_language.verdicts import Verdict

_SHARDS: Final = 256
_HOT: Final = 8_192
_MAX_INTERNED: Final = 65_536

_Own = tuple[str, int, int | None, bool, bool, int | None, str | None, str | None, dict[str, Any] | None]


class Entry(msgspec.Struct, gc=False):
    """One key, packed: what is its own as bytes, what it shares with others by reference."""

    own: bytes
    shared: KeyFacts
    as_of: int


class _Shard:
    """Two generations: what is found in the old one moves to the young one; the old one is dropped whole."""

    __slots__ = ("old", "young")

    def __init__(self) -> None:
        self.young: dict[bytes, Entry] = {}
        self.old: dict[bytes, Entry] = {}


class Memory:
    """Facts by fingerprint, at most `capacity` of them; what nobody asks for goes first.

    A million keys must fit in little memory and cost the garbage collector nothing, so facts
    are kept packed, and unpacked only while they are in use (`hot`). They lie in many small
    dicts: one large one stops the world for tens of milliseconds whenever it grows.
    """

    def __init__(self, capacity: int, negative_capacity: int) -> None:
        self.prefix = "0-"
        """What positions begin with."""
        self.hot: dict[bytes, KeyFacts] = {}
        """Unpacked, and checked against every change so far. Look here first."""
        self.welcomes: dict[bytes, Verdict] = {}
        """Of those, the ones that nothing but a change or the lease's end can make bad, once they were
        shown as a secret of their keyspace's shape."""
        self._shards = [_Shard() for _ in range(_SHARDS)]
        self._shard_limit = max(1, capacity // (2 * _SHARDS))
        self._interned: dict[bytes, KeyFacts] = {}
        self._absent: dict[bytes, int] = {}
        self._absent_before: dict[bytes, int] = {}
        self._absent_limit = max(1, negative_capacity // 2)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Own).decode

    def put(self, digest: bytes, facts: KeyFacts) -> None:
        """Remember the facts."""
        self._absent.pop(digest, None)
        self._absent_before.pop(digest, None)
        self._into(self._shards[digest[0]], digest, self._packed(facts))
        self._warm(digest, facts)

    def entry(self, digest: bytes) -> Entry | None:
        """The packed facts, if they are remembered."""
        shard = self._shards[digest[0]]
        entry = shard.young.get(digest)
        if entry is None and (entry := shard.old.pop(digest, None)) is not None:
            self._into(shard, digest, entry)
        return entry

    def unpack(self, digest: bytes, entry: Entry) -> KeyFacts:
        """The facts of an entry, kept at hand for the next time."""
        key_id, generation, ends_at, revoked, disabled, expires_at, name, owner_id, metadata = self._decode(
            entry.own
        )
        facts = replace(
            entry.shared,
            key_id=key_id,
            generation=generation,
            secret_ends_at=ends_at,
            revoked=revoked,
            disabled=disabled,
            expires_at=expires_at,
            name=name,
            owner_id=owner_id,
            metadata=metadata,
            as_of=entry.as_of,
        )
        self._warm(digest, facts)
        return facts

    def welcome(self, digest: bytes, facts: KeyFacts) -> None:
        """What was just looked up is good until it is dropped or cooled."""
        self.welcomes[digest] = Verdict(codes.VALID, facts, (), None, self.prefix)

    def put_absent(self, digest: bytes, as_of: int) -> None:
        """Remember that there is no such secret, apart from the good ones: garbage cannot push those out."""
        if len(self._absent) >= self._absent_limit:
            self._absent_before = self._absent
            self._absent = {}
        self._absent[digest] = as_of

    def is_absent(self, digest: bytes) -> bool:
        """Is it known that there is no such secret?"""
        return digest in self._absent or digest in self._absent_before

    def drop(self, digest: bytes) -> None:
        """Forget one fingerprint, present or absent."""
        self.hot.pop(digest, None)
        self.welcomes.pop(digest, None)
        shard = self._shards[digest[0]] if digest else None
        if shard is not None:
            shard.young.pop(digest, None)
            shard.old.pop(digest, None)
        self._absent.pop(digest, None)
        self._absent_before.pop(digest, None)

    def cool(self) -> None:
        """Unpack everything anew: some of it may have changed."""
        self.hot.clear()
        self.welcomes.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.cool()
        self._shards = [_Shard() for _ in range(_SHARDS)]
        self._interned.clear()
        self._absent = {}
        self._absent_before = {}

    def __len__(self) -> int:
        return sum(len(one.young) + len(one.old) for one in self._shards)

    def __iter__(self) -> Iterator[bytes]:
        for shard in self._shards:
            yield from shard.young
            yield from shard.old

    def _into(self, shard: _Shard, digest: bytes, entry: Entry) -> None:
        if len(shard.young) >= self._shard_limit and digest not in shard.young:
            shard.old = shard.young
            shard.young = {}
        shard.old.pop(digest, None)
        shard.young[digest] = entry

    def _warm(self, digest: bytes, facts: KeyFacts) -> None:
        if len(self.hot) >= _HOT:
            self.cool()
        self.hot[digest] = facts

    def _packed(self, facts: KeyFacts) -> Entry:
        own = self._encode(
            (
                facts.key_id,
                facts.generation,
                facts.secret_ends_at,
                facts.revoked,
                facts.disabled,
                facts.expires_at,
                facts.name,
                facts.owner_id,
                facts.metadata,
            )
        )
        return Entry(own, self._shared(facts), facts.as_of)

    def _shared(self, facts: KeyFacts) -> KeyFacts:
        """One object for all keys that differ only in what is their own."""
        template = replace(
            facts,
            key_id="",
            generation=0,
            secret_ends_at=None,
            revoked=False,
            disabled=False,
            expires_at=None,
            name=None,
            owner_id=None,
            metadata=None,
            as_of=0,
        )
        name = self._encode(template)
        found = self._interned.get(name)
        if found is None:
            if len(self._interned) >= _MAX_INTERNED:
                self._interned.clear()  # entries keep what they refer to; only sharing begins anew
            found = self._interned[name] = template
        return found
