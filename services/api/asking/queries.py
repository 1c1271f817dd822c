"""Query parameters of the hot paths: most take none, and what is not known is refused by its name."""

from __future__ import annotations

from typing import Final

from domain.state import State
from services.api.answering.problems import invalid
from services.api.asking.reading import beginning, read_pairs

_TAKEN: Final = {
    "/v1/self": frozenset({"keyspace_id"}),
    "/v1/self/revoke": frozenset({"keyspace_id", "fence"}),
}


def refuse_unknown(route: str, query: bytes, state: State) -> None:
    """Refuse a parameter that the route does not take. Forward-auth takes any: proxies append to it."""
    taken = _TAKEN.get(route, frozenset())
    for name, _ in read_pairs(query):
        if name not in taken and not (taken and _may_hold_a_secret(name, state)):
            raise invalid(beginning(name), "is not a parameter of this request")


def _may_hold_a_secret(name: str, state: State) -> bool:
    """Does a keyspace take secrets there?"""
    location = f"query:{name}"
    return any(location in keyspace.credential_locations for keyspace in state.keyspaces.values())
