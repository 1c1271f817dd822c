"""What a verdict needs to know of a key, gathered from the state and cached until it changes."""

from __future__ import annotations

from domain.keys import Key, Secret
from domain.state import Books, State
from keyledger_language import KeyFacts

_KEEP = 2_000_000


class FactsBook:
    """Facts of the committed state by fingerprint, built on first use."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._by_fingerprint: dict[bytes, KeyFacts] = {}
        self._by_key: dict[str, KeyFacts] = {}
        self.kept = self._by_fingerprint.get
        """The facts of a secret, if they are cached; costs half as much as `find`."""

    def find(self, fingerprint: bytes) -> KeyFacts | None:
        """The facts of a secret, or None if there is no such secret."""
        facts = self._by_fingerprint.get(fingerprint)
        if facts is not None:
            return facts
        secret = self.state.secrets.get(fingerprint)
        if secret is None:
            return None
        return self.of(self.state.keys[secret.key_id], secret)

    def of(self, key: Key, secret: Secret | None) -> KeyFacts:
        """The facts of a key, or of one of its secrets."""
        known = self._by_key.get(key.id) if secret is None else self._by_fingerprint.get(secret.fingerprint)
        if known is not None:
            return known
        facts = self.build(self.state, key, secret)
        if len(self._by_key) + len(self._by_fingerprint) > _KEEP:
            self.forget_all()
        if secret is None:
            self._by_key[key.id] = facts
        else:
            self._by_fingerprint[secret.fingerprint] = facts
        return facts

    def forget(self, key: Key) -> None:
        """Drop the facts of a key: it has changed."""
        self._by_key.pop(key.id, None)
        for secret in key.secrets:
            self._by_fingerprint.pop(secret.fingerprint, None)

    def forget_all(self) -> None:
        """Drop all facts: something that many keys share has changed."""
        self._by_key.clear()
        self._by_fingerprint.clear()

    @staticmethod
    def build(books: Books, key: Key, secret: Secret | None) -> KeyFacts:
        """Gather the facts from key, plan, organization and keyspace."""
        keyspace = books.keyspaces.find(key.keyspace_id)
        organization = books.organizations.find(key.organization_id) if key.organization_id else None
        plan = books.plans.find(key.plan_id) if key.plan_id else None
        assert keyspace is not None, "keyspaces are never removed"
        return KeyFacts(
            key_id=key.id,
            keyspace_id=key.keyspace_id,
            organization_id=key.organization_id,
            kind=key.kind,
            generation=secret.generation if secret else key.generation,
            secret_ends_at=secret.ends_at if secret else None,
            revoked=key.revoked_at is not None,
            disabled=key.disabled,
            expires_at=key.expires_at,
            organization_suspended=organization is not None and organization.suspended,
            scopes=key.scopes,
            plan_models=plan.models if plan else "*",
            projects=books.members.find(key.organization_id or "") or frozenset(),
            required_dimensions=keyspace.required_dimensions,
            require_balance=keyspace.require_balance,
            allowed_ips=key.allowed_ips,
            rate_limits=key.rate_limits,
            name=key.name,
            owner_id=key.owner_id,
            environment=key.environment,
            plan_id=key.plan_id,
            metadata=key.metadata or None,
            as_of=books.head,
        )
