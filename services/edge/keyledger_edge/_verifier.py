"""The verifier: whether a secret is valid for a use, from memory under a lease, otherwise from the ledger."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Protocol, Self

from keyledger_edge._clock import boottime_ns
from keyledger_edge._http import HttpClient
from keyledger_edge._leased_cache import Lease, LeasedCache, Unknown
from keyledger_edge._ledger_client import LedgerClient
from keyledger_edge._link import EdgeLink
from keyledger_edge._version import VERSION
from keyledger_edge._views import KeyspaceViews
from keyledger_edge.errors import LedgerUnreachableError, NotConnectedError, UnknownKeyspaceError
from keyledger_language import codes
from keyledger_language.facts import KeyFacts
from keyledger_language.judging import is_easy, judge, judge_use
from keyledger_language.messages import FillAnswer, KeyspaceView, VerifyRequest
from keyledger_language.positions import position_prefix
from keyledger_language.rate_limits import RateLimiter
from keyledger_language.uses import NO_USE, Use
from keyledger_language.verdicts import MALFORMED, MISSING, NOT_FOUND, UNREACHABLE, Verdict, VerifyAnswer

_FLIGHTS_PER_USE = 3
_PAUSE_SECONDS = 0.1
_LONGEST = 512
"""A longer secret is not hashed before its shape is checked."""
_VALID = codes.VALID


class FactsSource(Protocol):
    """Where a verifier's facts come from: an edge's leased memory, or the owner's committed state."""

    at: int
    """The time of day that belongs to the last answer, microseconds."""

    def facts_of(self, digest: bytes, /) -> KeyFacts | Unknown | None:
        """Facts, None for no such secret, or UNKNOWN if this source does not know."""
        ...


class FillableSource(FactsSource, Protocol):
    """A source that learns from the ledger's answers."""

    @property
    def has_lease(self) -> bool:
        """Whether its facts may be relied on now."""
        ...

    def now_utc(self) -> int:
        """The ledger's time of day, microseconds."""
        ...

    def believes(self, answer: FillAnswer, /) -> bool:
        """Whether the answer is at least as new as every change that is known."""
        ...

    def filled(self, digest: bytes, answer: FillAnswer, /) -> bool:
        """Store the answer if `believes` accepts it; whether it did."""
        ...


class Ledger(Protocol):
    """The requests of a verifier to the ledger."""

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        """The owner's committed state; LedgerUnreachableError if it does not answer."""
        ...

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        """The ledger's own verdict; LedgerUnreachableError if it does not answer."""
        ...


class _Flight:
    """One look-up under way, and when it began in the order of arrivals."""

    __slots__ = ("answer", "began")

    def __init__(self, began: int, answer: asyncio.Task[FillAnswer | None]) -> None:
        self.began = began
        self.answer = answer


class _Gate:
    """What every use is checked against first, kept at hand."""

    __slots__ = ("fullmatch", "keyspace", "keyspace_changes", "keyspace_id")

    def __init__(self, keyspace: KeyspaceView, keyspace_changes: int) -> None:
        self.keyspace_changes = keyspace_changes
        """The lease's `keyspace_changes` when the keyspace was known to be current."""
        self.keyspace = keyspace
        self.keyspace_id = keyspace.keyspace_id
        self.fullmatch = keyspace.shape.regex.fullmatch


class Verifier:
    """Answers whether a secret is valid for a use.

    Make an edge with `Verifier.at(url, key)`, and use it between `connect` and `close`, or as an
    async context manager. It belongs to one event loop; other threads use `verify_blocking`.
    """

    def __init__(
        self,
        source: FactsSource,
        keyspaces: Mapping[str, KeyspaceView],
        *,
        limiter: RateLimiter,
        ledger: Ledger | None = None,
        memory: FillableSource | None = None,
        views: KeyspaceViews | None = None,
    ) -> None:
        """`views` keeps `keyspaces` current; without it, the caller has to."""
        self._views = views
        self._facts_of: Callable[[bytes], KeyFacts | Unknown | None] = source.facts_of
        self._cache = source if isinstance(source, LeasedCache) else None
        # A source without a lease has no short cut: this lease ended at time zero.
        self._lease = self._cache.lease if self._cache is not None else Lease(boottime_ns, {})
        self._source = source
        self._keyspaces = keyspaces
        self._limiter = limiter
        self._ledger = ledger
        self._memory = memory
        self._gates: dict[str, _Gate] = {}
        self._only_gate: _Gate | None = None
        self._only_keyspace_id: str | None = None
        self._arrivals = 0
        self._flights: dict[tuple[bytes, str], _Flight] = {}
        if views is not None:
            views.on_told = self.forget_keyspaces
        self._link: EdgeLink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._patience_ns = 0

    # -- an edge's life ---------------------------------------------------------------------

    @classmethod
    def at(
        cls,
        url: str,
        key: str,
        *,
        keyspace_ids: tuple[str, ...] = (),
        serve_stale_ms: int = 0,
        capacity: int = 1_000_000,
        patience_seconds: float = 5.0,
        tls: ssl.SSLContext | None = None,
        name: str = "",
    ) -> Verifier:
        """An edge of the ledger at `url`, not connected yet; `key` is a root key with `edges:connect`.

        `serve_stale_ms`: continue to answer from memory for this long after the lease ended. A revoked
        key may be accepted for that much longer; every fence waits for it.
        """
        cache = LeasedCache(boottime_ns, capacity=capacity)
        client = LedgerClient(HttpClient(url, key, tls=tls), patience_seconds=patience_seconds)
        version = f"keyledger-edge/{VERSION}" + (f" {name}" if name else "")
        link = EdgeLink(
            client, cache, version=version, keyspace_ids=keyspace_ids, serve_stale_ms=serve_stale_ms
        )
        limiter = RateLimiter(lambda: boottime_ns() / 1e9)
        views = link.views
        verifier = cls(cache, views.known, limiter=limiter, ledger=client, memory=cache, views=views)
        verifier._link = link
        verifier._patience_ns = int(patience_seconds * 1e9)
        return verifier

    async def connect(self, *, wait_seconds: float = 5.0) -> Self:
        """Take part, and wait for the first lease, for `wait_seconds` at most.

        The verifier also works without a lease: then every use asks the ledger.
        """
        if self._link is not None:
            self._loop = asyncio.get_running_loop()
            self._flights.clear()
            await self._link.connect(wait_seconds=wait_seconds)
        return self

    def start(self) -> None:
        """Take part as soon as the ledger can be reached; never fails, never waits.

        Until then there are no keyspaces, and every use is `ledger_unreachable`.
        """
        if self._link is not None:
            self._loop = asyncio.get_running_loop()
            self._flights.clear()
            self._link.start()

    async def close(self) -> None:
        """Stop taking part."""
        if self._link is not None:
            await self._link.close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    @property
    def ready(self) -> bool:
        """Whether it answers from memory now, without asking the ledger for every use."""
        return self._cache is None or self._cache.has_lease

    @property
    def problem(self) -> str | None:
        """Why it does not take part yet, as a sentence; None if it does."""
        return self._link.refusal if self._link is not None else None

    @property
    def keyspaces(self) -> Mapping[str, KeyspaceView]:
        """The keyspaces that it serves, by id."""
        return self._keyspaces

    def metrics(self) -> dict[str, float]:
        """Gauges and counters, by name."""
        cache, link = self._cache, self._link
        if cache is None or link is None:
            return {}
        counters, asked = cache.counters, cache.hits + cache.counters.misses + cache.counters.lapsed
        return {
            "lease_left_seconds": cache.lease_left_ns / 1e9 if cache.has_lease else 0.0,
            "stale": float(cache.is_stale),
            "staleness_seconds": max(0.0, -cache.lease_left_ns / 1e9) if cache.epoch >= 0 else 0.0,
            "bus_connected": float(link.bus_connected),
            "bus_reconnects_total": link.reconnects,
            "position": cache.position,
            "keys_cached": len(cache),
            "lookups_total": asked,
            "hits_total": cache.hits,
            "hit_rate": cache.hits / asked if asked else 0.0,
            "misses_total": counters.misses,
            "without_lease_total": counters.lapsed,
            "fills_total": counters.fills,
            "stale_fills_total": counters.stale_fills,
            "changes_total": counters.changes,
            "holes_total": counters.holes,
            "resets_total": counters.resets,
            "grants_total": counters.grants,
            "grants_refused_total": counters.grants_refused,
        }

    # -- verifying --------------------------------------------------------------------------

    def verify_cached(self, secret: str, use: Use = NO_USE, keyspace_id: str | None = None) -> Verdict | None:
        """The verdict, if memory has the answer; None if the ledger must be asked."""
        lease = self._lease
        try:
            digest = sha256(secret.encode()).digest() if len(secret) <= _LONGEST else b""
        except UnicodeEncodeError:
            return MALFORMED
        welcome = lease.welcomes.get(digest)
        # The clock is read after the use arrived; memory is used only while the lease runs.
        if welcome is not None and lease.clock() < lease.ends:
            facts: KeyFacts = welcome.facts  # type: ignore[assignment]  # these verdicts always have facts
            # Such a key is valid at any time: only what the use names remains to be judged.
            if facts.keyspace_id == (keyspace_id or self._only_keyspace_id) and (
                use is NO_USE or judge_use(facts, use) is _VALID
            ):
                lease.hits += 1
                return welcome
        return self._verify_unwelcome(secret, digest, use, keyspace_id)

    def _verify_unwelcome(
        self, secret: str, digest: bytes, use: Use, keyspace_id: str | None
    ) -> Verdict | None:
        gate = self._gates.get(keyspace_id) if keyspace_id else self._only_gate
        if gate is None or gate.keyspace_changes != self._lease.keyspace_changes:
            if self._never_connected:
                return UNREACHABLE
            gate = self._gate(keyspace_id)
            if gate is None:
                return None
        if gate.fullmatch(secret) is None:
            return MALFORMED if secret else MISSING
        digest = digest or sha256(secret.encode()).digest()
        # The checksum costs more than hash and look-up, so it is only compared after a miss.
        found = self._looked_up(digest, secret, gate.keyspace)
        if not isinstance(found, KeyFacts):
            return found
        verdict = self._judged(found, use, self._source.at)
        if self._cache is not None and verdict is not None and verdict.code is _VALID and is_easy(found):
            self._cache.welcome(digest, found)
        return verdict

    def find(self, secret: str, keyspace: KeyspaceView, digest: bytes = b"") -> KeyFacts | Verdict | None:
        """The first half of a check: the secret's facts, a verdict without any, or None (ask the ledger).

        For the ledger itself, which knows more than a verifier and has checks of its own before `judge`.
        It passes the secret's `digest` if it has computed it already.
        """
        if keyspace.shape.regex.fullmatch(secret) is None:
            return MALFORMED if secret else MISSING
        return self._looked_up(digest or sha256(secret.encode()).digest(), secret, keyspace)

    def judge(self, facts: KeyFacts, use: Use, *, counts: bool = True) -> Verdict | None:
        """The second half: the verdict on a use of the key just found; None if only the ledger can decide.

        A use that does not count (it was counted before) is not counted against any rate limit.
        """
        return self._judged(facts, use, self._source.at, counts=counts)

    def _looked_up(self, digest: bytes, secret: str, keyspace: KeyspaceView) -> KeyFacts | Verdict | None:
        found = self._facts_of(digest)
        if isinstance(found, KeyFacts):
            return found if found.keyspace_id == keyspace.keyspace_id else NOT_FOUND
        if found is None and self._cache is not None:
            return NOT_FOUND  # The ledger was asked about this secret before, so its checksum is right.
        if not keyspace.shape.checksum_is_right(secret):
            return MALFORMED
        return NOT_FOUND if found is None else None

    @property
    def _never_connected(self) -> bool:
        """Whether no ledger has sent any keyspace yet."""
        return self._link is not None and not self._keyspaces

    def _gate(self, keyspace_id: str | None) -> _Gate | None:
        """None: the keyspace may have changed, or be new, and the ledger must be asked for it."""
        views = self._views
        if views is not None:
            known = self._keyspaces.get(keyspace_id) if keyspace_id else self._only_keyspace()
            name = keyspace_id or (known.keyspace_id if known is not None else None)
            if name is not None and not views.are_current(name):
                return None
        gate = _Gate(self.keyspace(keyspace_id), self._lease.keyspace_changes)
        if keyspace_id:
            self._gates[keyspace_id] = gate
        else:
            self._only_gate = gate
            self._only_keyspace_id = gate.keyspace_id
        return gate

    def forget_keyspaces(self) -> None:
        """Drop what was derived from the keyspaces: they have changed."""
        self._gates.clear()
        self._only_gate = self._only_keyspace_id = None
        # The welcomed secrets were matched against the former shape of their keyspace.
        self._lease.welcomes.clear()

    def _judged(
        self, facts: KeyFacts, use: Use, at: int, *, counts: bool = True, prefix: str | None = None
    ) -> Verdict | None:
        """`prefix`: of the facts' position, if they are not from memory."""
        code = judge(facts, use, at)
        prefix = prefix or self._lease.prefix
        if code is not _VALID:
            return Verdict(code, facts, (), None, prefix)
        if facts.require_balance and self._ledger is not None:
            return None  # Only the ledger knows the balance.
        if not facts.rate_limits:
            return Verdict(_VALID, facts, (), None, prefix)
        if not counts:
            states = self._limiter.peek(facts.key_id, facts.rate_limits, use.provider)
            return Verdict(_VALID, facts, tuple(states), None, prefix)
        allowed, states = self._limiter.take(facts.key_id, facts.rate_limits, use.provider)
        code = _VALID if allowed else codes.RATE_LIMITED
        return Verdict(code, facts, tuple(states), None, prefix)

    async def verify(
        self,
        secret: str,
        use: Use = NO_USE,
        *,
        keyspace_id: str | None = None,
        cost_micros: int | None = None,
        reserve_micros: int | None = None,
        request_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        view: KeyspaceView | None = None,
    ) -> Verdict:
        """The verdict. A use with a cost is charged by the ledger, once per `request_id`.

        `metadata` is stored with the charge or reservation. `view`: what `current_keyspace` returned for
        this very use.
        """
        if cost_micros is None and reserve_micros is None:
            verdict = self.verify_cached(secret, use, keyspace_id)
            return verdict if verdict is not None else await self.ask(secret, use, keyspace_id, view=view)
        # The ledger judges the use: a keyspace from before the lease ended is enough to refuse garbage.
        keyspace = view or await self.current_keyspace(keyspace_id, leased=False, patient=True)
        if keyspace is None:
            return UNREACHABLE
        if not keyspace.shape.recognises(secret):
            return MALFORMED if secret else MISSING
        request = _request(secret, use, keyspace)
        request.cost_micros, request.reserve_micros = cost_micros, reserve_micros
        request.request_id, request.metadata = request_id, metadata
        return await self._ask_with_cost(request)

    def verify_blocking(
        self,
        secret: str,
        use: Use = NO_USE,
        *,
        keyspace_id: str | None = None,
        cost_micros: int | None = None,
        request_id: str | None = None,
        timeout: float = 10.0,
    ) -> Verdict:
        """The same as `verify`, for threads other than that of the event loop that `connect` ran in."""
        if self._loop is None:
            raise NotConnectedError("Connect the verifier first, in an event loop.")
        asking = self.verify(
            secret, use, keyspace_id=keyspace_id, cost_micros=cost_micros, request_id=request_id
        )
        try:
            return asyncio.run_coroutine_threadsafe(asking, self._loop).result(timeout)
        except TimeoutError:
            return UNREACHABLE

    async def current_keyspace(
        self, keyspace_id: str | None = None, *, leased: bool = True, patient: bool = False
    ) -> KeyspaceView | None:
        """The keyspace as it is now; None if the ledger does not answer.

        If none is named, the only existing one. Call this before you read a secret from a request.
        `leased=False`: changes that an edge without a lease cannot receive may be missing. `patient`: ask
        again for as long as for a use with a cost.
        """
        view = self.current_keyspace_cached(keyspace_id, leased=leased)
        if view is not None or self._views is None or self._never_connected:
            return view
        name = keyspace_id or self.keyspace().keyspace_id
        deadline = boottime_ns() + (self._patience_ns if patient else 0)
        while not await self._views.learn(name):
            if boottime_ns() >= deadline:
                return None
            await asyncio.sleep(_PAUSE_SECONDS)
        return self.keyspace(name)

    def current_keyspace_cached(
        self, keyspace_id: str | None = None, *, leased: bool = True
    ) -> KeyspaceView | None:
        """The keyspace, if it is known to be current; None if the ledger must be asked."""
        views, lease = self._views, self._lease
        if views is None:
            return self.keyspace(keyspace_id)
        gate = self._gates.get(keyspace_id) if keyspace_id else self._only_gate
        if (
            gate is not None
            and gate.keyspace_changes == lease.keyspace_changes
            and lease.clock() < lease.ends
        ):
            return gate.keyspace
        if self._never_connected:
            return None
        name = keyspace_id or self.keyspace().keyspace_id
        current = views.may_be_used(name) if leased else views.are_current(name)
        return self.keyspace(name) if current else None

    def keyspace(self, keyspace_id: str | None = None) -> KeyspaceView:
        """The keyspace as last received, which may have changed; if none is named, the only existing one."""
        keyspace = self._keyspaces.get(keyspace_id) if keyspace_id else self._only_keyspace()
        if keyspace is None:
            raise UnknownKeyspaceError(keyspace_id)
        return keyspace

    def _only_keyspace(self) -> KeyspaceView | None:
        if len(self._keyspaces) != 1:
            return None
        for keyspace in self._keyspaces.values():
            return keyspace
        return None

    # -- asking the ledger ------------------------------------------------------------------

    async def ask(
        self,
        secret: str,
        use: Use = NO_USE,
        keyspace_id: str | None = None,
        *,
        view: KeyspaceView | None = None,
    ) -> Verdict:
        """The verdict when `verify_cached` returned None. `view`: as for `verify`."""
        if self._ledger is None or self._memory is None:
            return UNREACHABLE
        keyspace = view or await self.current_keyspace(keyspace_id)
        if keyspace is None:
            return UNREACHABLE
        if self._views is not None and not keyspace.shape.recognises(secret):
            return MALFORMED if secret else MISSING
        return await self._asked(secret, use, keyspace)

    async def _asked(self, secret: str, use: Use, keyspace: KeyspaceView) -> Verdict:
        answer = await self._look_up(sha256(secret.encode()).digest(), keyspace.keyspace_id)
        if answer is None:
            return UNREACHABLE
        if answer.facts is None or answer.facts.keyspace_id != keyspace.keyspace_id:
            return NOT_FOUND
        # The answer has its own epoch: memory may have none, or the previous one.
        prefix = position_prefix(answer.partition, answer.epoch)
        verdict = self._judged(answer.facts, use, self._time_for(answer), prefix=prefix)
        if verdict is None:
            return await self._ask_with_cost(_request(secret, use, keyspace))
        return verdict

    def _time_for(self, answer: FillAnswer) -> int:
        memory = self._memory
        return max(answer.utc, memory.now_utc()) if memory is not None and memory.has_lease else answer.utc

    async def _look_up(self, digest: bytes, keyspace_id: str) -> FillAnswer | None:
        """A look-up that many uses share, but none that began before this use arrived and may be stale."""
        self._arrivals += 1
        arrived = self._arrivals
        for _ in range(_FLIGHTS_PER_USE):
            flight = self._flights.get((digest, keyspace_id)) or self._take_off(digest, keyspace_id)
            answer = await asyncio.shield(flight.answer)
            if self._may_share(flight, arrived, answer):
                return answer
        return None

    def _may_share(self, flight: _Flight, arrived: int, answer: FillAnswer | None) -> bool:
        """Rule 8: whether the look-up began after the use arrived, or the lease and rule 7 confirm it."""
        if flight.began >= arrived:
            return True
        memory = self._memory
        return answer is not None and memory is not None and memory.has_lease and memory.believes(answer)

    def _take_off(self, digest: bytes, keyspace_id: str) -> _Flight:
        name = (digest, keyspace_id)
        task = asyncio.get_running_loop().create_task(self._fly(digest, keyspace_id))
        flight = self._flights[name] = _Flight(self._arrivals, task)
        return flight

    async def _fly(self, digest: bytes, keyspace_id: str) -> FillAnswer | None:
        ledger, memory = self._ledger, self._memory
        assert ledger is not None, "only an edge asks"
        assert memory is not None, "only an edge asks"
        try:
            answer = await ledger.fill(digest, keyspace_id)
        except LedgerUnreachableError:
            return None
        finally:
            self._flights.pop((digest, keyspace_id), None)
        memory.filled(digest, answer)
        return answer

    async def _ask_with_cost(self, request: VerifyRequest) -> Verdict:
        if self._ledger is None:
            return UNREACHABLE
        try:
            answer = await self._ledger.verify(request)
        except LedgerUnreachableError:
            return UNREACHABLE
        return Verdict(answer.code, None, answer.rate_states(), answer)


def _request(secret: str, use: Use, keyspace: KeyspaceView) -> VerifyRequest:
    return VerifyRequest(
        secret=secret,
        keyspace_id=keyspace.keyspace_id,
        permissions=use.permissions,
        project_id=use.project_id,
        model=use.model,
        provider=use.provider,
        tenant=use.tenant,
        ip=use.ip,
    )
