"""An edge's memory of keys: packed, bounded, and with digests of secrets only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from keyledger_language import codes
from keyledger_language.bounded_dicts import BoundedCache, TwoGenerations
from keyledger_language.facts import KeyFacts
from keyledger_language.verdicts import Verdict

_SHARDS: Final = 256
_HOT: Final = 8_192
_MAX_INTERNED: Final = 65_536

_Own = tuple[str, int, int | None, bool, bool, int | None, str | None, str | None, dict[str, Any] | None]


class Entry(msgspec.Struct, gc=False):
    """One key, packed: its own values as bytes, values that it shares with others by reference."""

    own: bytes
    shared: KeyFacts
    as_of: int


class Memory:
    """Facts by fingerprint, at most `capacity` of them; the least recently used are dropped first.

    A million keys must fit in little memory and cost the garbage collector nothing, so facts
    are stored packed, and unpacked only while they are in use (`hot`). They are in many small
    dicts: a single large one stops the process for tens of milliseconds whenever it grows.
    """

    def __init__(self, capacity: int, negative_capacity: int) -> None:
        self.prefix = "0-"
        """The prefix of positions."""
        self.hot: dict[bytes, KeyFacts] = {}
        """Unpacked facts, checked against every change so far. Look here first."""
        self.welcomes: dict[bytes, Verdict] = {}
        """Verdicts on those of them that only a change or the lease's end can invalidate, and whose secret
        was found to have its keyspace's shape."""
        kept = capacity // (2 * _SHARDS)
        self._shards = [TwoGenerations[bytes, Entry](kept) for _ in range(_SHARDS)]
        self._interned = BoundedCache[bytes, KeyFacts](_MAX_INTERNED)
        """Entries keep their own references: when this is full and cleared, only sharing starts over."""
        self._absent = TwoGenerations[bytes, None](negative_capacity // 2)
        self.is_absent: Callable[[bytes], bool] = self._absent.__contains__
        """Whether it is known that there is no such secret."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Own).decode

    def put(self, digest: bytes, facts: KeyFacts) -> None:
        """Store the facts."""
        self._absent.drop(digest)
        self._shards[digest[0]].put(digest, self._packed(facts))
        self._warm(digest, facts)

    def entry(self, digest: bytes) -> Entry | None:
        """The packed facts, if they are in memory."""
        return self._shards[digest[0]].renew(digest)

    def unpack(self, digest: bytes, entry: Entry) -> KeyFacts:
        """The facts of an entry; they stay unpacked for the next time."""
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
        """Let a key that was just found valid take the short path until it is dropped or cooled."""
        self.welcomes[digest] = Verdict(codes.VALID, facts, (), None, self.prefix)

    def put_absent(self, digest: bytes) -> None:
        """Store that there is no such secret, apart from existing ones: garbage cannot displace those."""
        self._absent.put(digest, None)

    def drop(self, digest: bytes) -> None:
        """Remove one fingerprint, present or absent."""
        self.hot.pop(digest, None)
        self.welcomes.pop(digest, None)
        if digest:
            self._shards[digest[0]].drop(digest)
        self._absent.drop(digest)

    def cool(self) -> None:
        """Drop all unpacked facts: some of them may have changed."""
        self.hot.clear()
        self.welcomes.clear()

    def clear(self) -> None:
        """Remove everything."""
        self.cool()
        for shard in self._shards:
            shard.clear()
        self._interned.clear()
        self._absent.clear()

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __iter__(self) -> Iterator[bytes]:
        for shard in self._shards:
            yield from shard

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
        """One object for all keys that differ only in their own values."""
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
            self._interned.put(name, found := template)
        return found
