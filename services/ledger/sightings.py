"""What is only observed, not decided: last uses and denials. Collected in memory, written in bulk.

Each key is written at most once a minute, and request ids of denials (a root key's caller sends
them) up to a cap: an attacker cannot flood the log.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from domain.commands import Denied, RecordSeen
from domain.money import price
from keyledger_language import Tenant, Use
from keyledger_language.events import Denial
from keyledger_language.instants import SECOND, Instant

_SEEN_EVERY: Instant = 60 * SECOND
_MAX_KEYS_PER_WRITE = 5_000
_MAX_REQUESTS_PER_KEY = 20
_MAX_REQUESTS = 2_000
_MAX_METADATA_BYTES = 1_048_576
"""For all refusals that are not written yet: above this, a refusal is kept without its metadata."""
_MAX_REMEMBERED = 200_000


class Refused(NamedTuple):
    """A use that would have cost money, as it was requested."""

    request_id: str
    base_micros: int
    price_multiplier: str
    use: Use
    metadata: dict[str, Any] | None = None


class _Denials:
    __slots__ = ("counts", "requests")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.requests: list[tuple[Denial, dict[str, Any] | None]] = []


class Sightings:
    """Uses and denials since they were last written."""

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}
        self._written: dict[str, Instant] = {}
        self._denied: dict[str, _Denials] = {}
        self._denials_written: dict[str, Instant] = {}
        self._requests = 0
        self._metadata_bytes = 0

    def forget(self) -> None:
        """Forget everything: the log may have lost these keys."""
        self._seen.clear()
        self._written.clear()
        self._denied.clear()
        self._denials_written.clear()
        self._requests = self._metadata_bytes = 0

    def seen(self, key_id: str, at: Instant) -> None:
        """Note that a use of the key was found valid."""
        sighting = self._seen.get(key_id)
        if sighting is None:
            self._seen[key_id] = [at, 1]
        else:
            sighting[0] = at
            sighting[1] += 1

    def last_seen(self, key_id: str) -> Instant | None:
        """When the key was last seen, if that is not written yet."""
        sighting = self._seen.get(key_id)
        return None if sighting is None else sighting[0]

    def denied(
        self,
        key_id: str,
        code: str,
        at: Instant,
        request: str | Refused | None = None,
    ) -> None:
        """Note a refused use of the key; `request` is its id, or all of it if it would have cost money."""
        denials = self._denied.get(key_id)
        if denials is None:
            denials = self._denied[key_id] = _Denials()
        denials.counts[code] = denials.counts.get(code, 0) + 1
        if (
            request is not None
            and len(denials.requests) < _MAX_REQUESTS_PER_KEY
            and self._requests < _MAX_REQUESTS
        ):
            self._requests += 1
            denials.requests.append(self._noted(request, code, at))

    def _noted(self, request: str | Refused, code: str, at: Instant) -> tuple[Denial, dict[str, Any] | None]:
        if isinstance(request, str):
            return Denial(request_id=request, code=code, at=at), None
        use, tenant = request.use, request.use.tenant or Tenant()
        denial = Denial(
            request_id=request.request_id,
            code=code,
            at=at,
            amount_micros=price(request.base_micros, request.price_multiplier),
            base_micros=request.base_micros,
            price_multiplier=request.price_multiplier,
            model=use.model,
            provider=use.provider,
            project_id=use.project_id,
            tenant_org_id=tenant.org_id,
            tenant_user_id=tenant.user_id,
        )
        size = _size_of(request.metadata)
        if self._metadata_bytes + size > _MAX_METADATA_BYTES:
            return denial, None
        self._metadata_bytes += size
        return denial, request.metadata or None

    def take(self, now: Instant) -> RecordSeen | None:
        """Take what is due to be written; None if nothing is."""
        ready = [key_id for key_id in self._seen if now - self._written.get(key_id, 0) >= _SEEN_EVERY][
            :_MAX_KEYS_PER_WRITE
        ]
        seen = tuple((key_id, *_pair(self._seen.pop(key_id))) for key_id in ready)
        for key_id in ready:
            self._written[key_id] = now
        self._written = _still_recent(self._written, now)
        denied = self._take_denied(now)
        if not seen and not denied:
            return None
        return RecordSeen(seen=seen, denied=denied)

    def _take_denied(self, now: Instant) -> tuple[Denied, ...]:
        """Denials with a request id at once, since somebody may look for it; mere counts as often as uses."""
        ready = [
            key_id
            for key_id, one in self._denied.items()
            if one.requests or now - self._denials_written.get(key_id, 0) >= _SEEN_EVERY
        ][:_MAX_KEYS_PER_WRITE]
        for key_id in ready:
            self._denials_written[key_id] = now
        self._denials_written = _still_recent(self._denials_written, now)
        taken = [(key_id, self._denied.pop(key_id)) for key_id in ready]
        self._requests -= sum(len(one.requests) for _, one in taken)
        self._metadata_bytes -= sum(_size_of(told) for _, one in taken for _, told in one.requests)
        return tuple(
            Denied(
                key_id=key_id,
                counts=one.counts,
                requests=tuple(denial for denial, _ in one.requests),
                metadata={str(place): told for place, (_, told) in enumerate(one.requests) if told},
            )
            for key_id, one in taken
        )

    def put_back(self, command: RecordSeen) -> None:
        """It could not be written: it is due again."""
        for key_id, at, count in command.seen:
            sighting = self._seen.setdefault(key_id, [at, 0])
            sighting[0] = max(sighting[0], at)
            sighting[1] += count
            self._written.pop(key_id, None)
        for denied in command.denied:
            one = self._denied.setdefault(denied.key_id, _Denials())
            for code, count in denied.counts.items():
                one.counts[code] = one.counts.get(code, 0) + count
            self._requests += len(denied.requests)
            self._metadata_bytes += sum(map(_size_of, denied.metadata.values()))
            one.requests[:0] = [
                (denial, denied.metadata.get(str(place))) for place, denial in enumerate(denied.requests)
            ]
            self._denials_written.pop(denied.key_id, None)


def _size_of(metadata: dict[str, Any] | None) -> int:
    return len(msgspec.json.encode(metadata)) if metadata else 0


def _pair(sighting: list[int]) -> tuple[Instant, int]:
    return sighting[0], sighting[1]


def _still_recent(written: dict[str, Instant], now: Instant) -> dict[str, Instant]:
    """Bound what is remembered of keys that are not used any more."""
    if len(written) <= _MAX_REMEMBERED:
        return written
    return {key_id: at for key_id, at in written.items() if now - at < _SEEN_EVERY}
