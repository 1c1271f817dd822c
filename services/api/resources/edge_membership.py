"""How an edge connects: it gets the terms once, and fills its memory on a miss."""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from domain.decisions.access import find_keyspace
from domain.ids import is_id, new_id
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from keyledger_language import (
    ConnectAnswer,
    ConnectRequest,
    EdgeIdentity,
    FillAnswer,
    FillRequest,
    KeyspacesAnswer,
    KeyspacesRequest,
    KeyspaceView,
)
from services.api.answering.problems import ProblemError, invalid
from services.api.asking.call import Call
from services.api.operations import NoQuery, Operation, Reply, operation
from services.ledger.lease_table import IncarnationTakenError, LeasedEdge, TooManyEdgesError
from services.ledger.lease_terms import LeaseTerms

_INCARNATION_BYTES = 16
_NONCE_BYTES = 24
_PROOF_BYTES = 16

NO_EDGE_ADDRESS = (
    "Edges are refused: KEYLEDGER_NATS_URL has the ledger's own user, which is not handed out. Set "
    "KEYLEDGER_EDGE_NATS_URL to the address and user for edges, or KEYLEDGER_EDGE_NATS_ISSUER."
)
_FINGERPRINT_BYTES = 32


class EdgeAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How edges reach NATS, and on which terms they may rely on their memory."""

    nats_url: str | None
    """One or several, separated by commas; user and password may be in it, and are handed out separately.

    None: no address may be handed out, and edges are refused.
    """
    lease: LeaseTerms
    password_of: Callable[[str], str | None] | None = None
    """The NATS password of a root key's edges, by the key's id; None: they use the one in `nats_url`."""


def edge_address(nats_url: str, edge_nats_url: str | None, *, users_of_their_own: bool) -> str | None:
    """The NATS address that edges may get: never with the ledger's own credentials."""
    if users_of_their_own:
        return _without_credentials(edge_nats_url or nats_url)
    if edge_nats_url is None:
        return nats_url if _without_credentials(nats_url) == nats_url else None
    own = _users_in(nats_url)
    return None if own & _users_in(edge_nats_url) else edge_nats_url


def _users_in(nats_url: str) -> set[str]:
    return {
        userinfo
        for one in nats_url.split(",")
        if (userinfo := urlsplit(one.strip()).netloc.rpartition("@")[0])
    }


def _without_credentials(nats_url: str) -> str:
    return ",".join(_credentials(nats_url)[0])


def edge_routes(access: EdgeAccess) -> tuple[Operation, ...]:
    """The three routes of edges, on these terms."""
    return _connect_route(access), tell_keyspaces, fill_edge


def _connect_route(access: EdgeAccess) -> Operation:
    @operation(
        "POST",
        "/v1/edges/connect",
        tag="Edges",
        summary="Connect an edge",
        description=(
            "Answers the terms, the keyspaces, the key that seals leases, and how to reach NATS. The key is "
            "given once: an incarnation that connects again proves its identity with `nonce` and `proof`."
        ),
        permissions=("edges:connect",),
        body=ConnectRequest,
        answer=ConnectAnswer,
        codes=("not_found", "edge_taken", "too_many_edges"),
        example={"incarnation": "9f86d081884c7d659a2feaa0c55ad015", "version": "0.1.0"},
    )
    async def connect_edge(call: Call[NoQuery, ConnectRequest]) -> Reply:
        """Give an edge what it needs."""
        call.ledger.must_own()
        asked = call.body
        if not asked.version.isprintable():
            # It is shown to people: no character in it may change the direction of the text around it.
            raise invalid("version", "printable characters")
        urls, user, password = _way_to_nats(access, call.asking.actor)
        edge, fences = _admitted(call), call.ledger.fences
        answer = ConnectAnswer(
            edge_id=edge.who.edge_id,
            root_key_id=edge.who.root_key_id,
            nonce=edge.who.nonce.hex(),
            edge_key=edge.key.hex() if asked.proof is None else None,
            keyspaces=[_view(one) for one in _keyspaces(call, asked.keyspace_ids)],
            lease_ms=access.lease.lease_ms,
            ping_ms=access.lease.ping_ms,
            drift=access.lease.drift,
            max_serve_stale_ms=access.lease.max_serve_stale_ms,
            partition=call.partition,
            epoch=fences.epoch,
            lineage=fences.lineage,
            as_of=fences.head,
            nats_urls=urls,
            nats_user=user,
            nats_password=password,
        )
        return Reply(msgspec.json.encode(answer))

    return connect_edge


@operation(
    "POST",
    "/v1/edges/keyspaces",
    operation_id="getEdgeKeyspaces",
    tag="Edges",
    summary="Get the present request formats of keyspaces",
    description=(
        "The owner's committed state of keyspaces, as of a position: an edge that has received a change of "
        "a keyspace judges nothing by the older state."
    ),
    permissions=("edges:connect",),
    body=KeyspacesRequest,
    answer=KeyspacesAnswer,
    codes=("not_found",),
    example={"keyspace_ids": ["ks_01JD0000000000000000000000"]},
)
async def tell_keyspaces(call: Call[NoQuery, KeyspacesRequest]) -> Reply:
    """Get the keyspaces, as of the ledger's head."""
    call.ledger.must_own()
    fences = call.ledger.fences
    answer = KeyspacesAnswer(
        keyspaces=[_view(one) for one in _keyspaces(call, call.body.keyspace_ids)],
        as_of=fences.head,
        partition=call.partition,
        epoch=fences.epoch,
        lineage=fences.lineage,
    )
    return Reply(msgspec.json.encode(answer))


@operation(
    "POST",
    "/v1/edges/fill",
    tag="Edges",
    summary="Get the facts of one secret, by its fingerprint",
    description="The owner's committed state of the secret, for an edge's memory. Never the secret itself.",
    permissions=("edges:connect",),
    body=FillRequest,
    answer=FillAnswer,
    codes=("not_found",),
    example={
        "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "keyspace_id": "ks_01JD0000000000000000000000",
    },
)
async def fill_edge(call: Call[NoQuery, FillRequest]) -> Reply:
    """Get the facts of one secret, as of the ledger's head."""
    call.ledger.must_own()
    find_keyspace(call.desk, call.body.keyspace_id, field="keyspace_id")
    digest = _bytes("fingerprint", call.body.fingerprint, _FINGERPRINT_BYTES)
    fences, facts = call.ledger.fences, call.ledger.facts.find(digest)
    head = fences.head
    hidden = (
        facts is None
        or facts.keyspace_id == ROOT_KEYSPACE_ID
        or call.asking.keyspace_id not in (None, facts.keyspace_id)
        or call.asking.organization_id not in (None, facts.organization_id)
    )
    if facts is not None and not hidden:
        facts = msgspec.structs.replace(facts, as_of=head)
    answer = FillAnswer(
        facts=None if hidden else facts,
        as_of=head,
        partition=call.partition,
        epoch=fences.epoch,
        utc=call.now,
        lineage=fences.lineage,
    )
    return Reply(msgspec.json.encode(answer))


def _way_to_nats(access: EdgeAccess, root_key_id: str) -> tuple[list[str], str | None, str | None]:
    if access.nats_url is None:
        raise ProblemError("unavailable", NO_EDGE_ADDRESS)
    urls, user, password = _credentials(access.nats_url)
    if access.password_of is None:
        return urls, user, password
    password = access.password_of(root_key_id)
    if password is None:
        raise ProblemError("unavailable", "The ledger does not know the edges' NATS password yet.")
    return urls, root_key_id, password


def _admitted(call: Call[Any, ConnectRequest]) -> LeasedEdge:
    """The caller as an edge: a new incarnation, or one that proves its identity."""
    asked, fences = call.body, call.ledger.fences
    incarnation = _bytes("incarnation", asked.incarnation, _INCARNATION_BYTES)
    edge_id = _edge_id(call, asked.edge_id)
    try:
        if asked.nonce is None and asked.proof is None:
            return fences.admit(call.asking.actor, edge_id, incarnation)
        nonce = _bytes("nonce", asked.nonce or "", _NONCE_BYTES)
        who = EdgeIdentity(call.asking.actor, edge_id, incarnation, nonce)
        return fences.readmit(who, _bytes("proof", asked.proof or "", _PROOF_BYTES))
    except IncarnationTakenError:
        raise ProblemError(
            "edge_taken", "This incarnation is connected already: each start of a process draws a new one."
        ) from None
    except TooManyEdgesError as error:
        raise ProblemError("too_many_edges", str(error), headers={"Retry-After": "10"}) from None


def _edge_id(call: Call[Any, Any], given: str | None) -> str:
    """The id that it had before, or a new one."""
    if given is None:
        return new_id("edge", call.now, secrets.randbits(80))
    if not is_id("edge", given):
        raise invalid("edge_id", "must be the id from an earlier answer, or absent")
    return given


def _keyspaces(call: Call[Any, Any], wanted: tuple[str, ...]) -> list[Keyspace]:
    """The requested keyspaces, or all that the caller's root key may see; never the root keys' own.

    An archived one is left out and not refused: an edge that also names others continues with those.
    """
    if wanted:
        found = (find_keyspace(call.desk, one, field="keyspace_ids") for one in wanted)
        return [keyspace for keyspace in found if not keyspace.archived]
    bound = call.asking.keyspace_id
    return [
        keyspace
        for keyspace in call.books.keyspaces.values()
        if not (keyspace.builtin or keyspace.archived) and bound in (None, keyspace.id)
    ]


def _view(keyspace: Keyspace) -> KeyspaceView:
    return KeyspaceView(
        keyspace_id=keyspace.id,
        name=keyspace.name,
        shape=keyspace.shape,
        credential_locations=keyspace.credential_locations,
        tenant_locations=keyspace.tenant_locations,
        denial_status=keyspace.denial_status,
        require_balance=keyspace.require_balance,
        required_dimensions=keyspace.required_dimensions,
    )


def _credentials(nats_url: str) -> tuple[list[str], str | None, str | None]:
    """The addresses without credentials, the user and the password."""
    urls: list[str] = []
    user = password = None
    for one in nats_url.split(","):
        parts = urlsplit(one.strip())
        user, password = parts.username or user, parts.password or password
        urls.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    return urls, user, password


def _bytes(field: str, text: str, length: int) -> bytes:
    try:
        given = binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        given = b""
    if len(given) != length:
        raise invalid(field, f"{2 * length} hex digits")
    return given
