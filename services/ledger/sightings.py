"""What is only seen, not decided: last uses and denials. Collected in memory, written in bulk.

Each key is written at most once a minute, and request ids of denials (a root key's caller sends
them) up to a cap: an attacker cannot flood the log.
"""

from __future__ import annotations

from domain.commands import Denied, RecordSeen
from domain.events import Denial
from domain.instants import SECOND, Instant

_SEEN_EVERY: Instant = 60 * SECOND
_MAX_KEYS_PER_WRITE = 5_000
_MAX_REQUESTS_PER_KEY = 20
_MAX_REQUESTS = 2_000
_MAX_REMEMBERED = 200_000


class _Denials:
    __slots__ = ("counts", "requests")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.requests: list[Denial] = []


class Sightings:
    """Uses and denials since they were last written down."""

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}
        self._written: dict[str, Instant] = {}
        self._denied: dict[str, _Denials] = {}
        self._denials_written: dict[str, Instant] = {}
        self._requests = 0

    def forget(self) -> None:
        """The log may have lost these keys."""
        self._seen.clear()
        self._written.clear()
        self._denied.clear()
        self._denials_written.clear()
        self._requests = 0

    def seen(self, key_id: str, at: Instant) -> None:
        """A use of the key was found valid."""
        sighting = self._seen.get(key_id)
        if sighting is None:
            self._seen[key_id] = [at, 1]
        else:
            sighting[0] = at
            sighting[1] += 1

    def last_seen(self, key_id: str) -> Instant | None:
        """When the key was last seen, if that is not written down yet."""
        sighting = self._seen.get(key_id)
        return None if sighting is None else sighting[0]

    def denied(
        self,
        key_id: str,
        code: str,
        at: Instant,
        request_id: str | None = None,
        amount_micros: int | None = None,
    ) -> None:
        """A use of the key was refused."""
        denials = self._denied.get(key_id)
        if denials is None:
            denials = self._denied[key_id] = _Denials()
        denials.counts[code] = denials.counts.get(code, 0) + 1
        if (
            request_id is not None
            and len(denials.requests) < _MAX_REQUESTS_PER_KEY
            and self._requests < _MAX_REQUESTS
        ):
            self._requests += 1
            denials.requests.append(
                Denial(request_id=request_id, code=code, at=at, amount_micros=amount_micros)
            )

    def take(self, now: Instant) -> RecordSeen | None:
        """What is due to be written down; None when nothing is."""
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
        """Denials with a request id at once, for somebody may look for it; mere counts as uses are."""
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
        return tuple(
            Denied(key_id=key_id, counts=one.counts, requests=tuple(one.requests)) for key_id, one in taken
        )

    def put_back(self, command: RecordSeen) -> None:
        """It could not be written down: it is due again."""
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
            one.requests[:0] = denied.requests
            self._denials_written.pop(denied.key_id, None)


def _pair(sighting: list[int]) -> tuple[Instant, int]:
    return sighting[0], sighting[1]


def _still_recent(written: dict[str, Instant], now: Instant) -> dict[str, Instant]:
    """Bound what is remembered of keys that nobody uses any more."""
    if len(written) <= _MAX_REMEMBERED:
        return written
    return {key_id: at for key_id, at in written.items() if now - at < _SEEN_EVERY}
