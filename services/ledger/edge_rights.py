"""Which root keys edges may take part with."""

from __future__ import annotations

from domain.decisions.access import is_root, permissions_of
from domain.keys import Key
from domain.state import Books, State
from keyledger_language.instants import Instant


def may_connect(books: Books, root_key_id: str, now: Instant) -> bool:
    """Whether this root key works, as committed, and edges may take part with it."""
    key = books.keys.get(root_key_id)
    if key is None or not is_root(key) or key.deleted or key.status(now) != "active":
        return False
    organization = books.organizations.get(key.organization_id) if key.organization_id else None
    suspended = organization is not None and organization.suspended
    return not suspended and "edges:connect" in permissions_of(key)


def root_keys_with_edges(state: State, now: Instant) -> list[str]:
    """The ids of all root keys that edges may take part with."""
    # Root keys are decoded when a state is loaded; the rows of other keys may stay encoded.
    decoded = dict[str, Key].values(state.keys)
    return [key.id for key in decoded if is_root(key) and may_connect(state, key.id, now)]
