"""What edge and ledger say to each other: bodies over HTTP, sealed bytes over NATS.

Over NATS travel positions, ids and fingerprints; no name, owner, address or metadata ever does.
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, Final, Literal

import msgspec

from keyledger_language.facts import KeyFacts
from keyledger_language.secrets import SecretShape
from keyledger_language.uses import Tenant

LEASE_SUBJECT: Final = "keyledger.edge.lease"
"""Followed by `.<root key id>`: what the edges of one root key say is heard apart from all others."""
CHANGES_SUBJECT: Final = "keyledger.edge.changes"
GRANT_SUBJECT: Final = "keyledger.edge.grant"
"""Followed by `.<root key id>.<edge id>`: an edge hears the grants of its own root key only."""

SEAL_LENGTH: Final = 16
INCARNATION_LENGTH: Final = 16
NONCE_LENGTH: Final = 24

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Version = Annotated[str, msgspec.Meta(max_length=64)]
_Chain = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Number = Annotated[int, msgspec.Meta(ge=0)]
_Small = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Milliseconds = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Nonce = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-fA-F]{{{2 * NONCE_LENGTH}}}$")]
_EdgeKey = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]


class KeyspaceView(msgspec.Struct, frozen=True, kw_only=True):
    """What an edge must know of a keyspace to read requests and to answer them."""

    keyspace_id: str
    """The keyspace's id."""
    name: str = ""
    """What people call the keyspace."""
    shape: SecretShape
    """What its secrets look like."""
    credential_locations: tuple[str, ...] = ("header:Authorization:Bearer", "header:X-API-Key")
    """Where a secret may stand in a request, such as `header:X-API-Key`."""
    tenant_locations: dict[str, str] = {}
    """Where a use's tenant stands, such as `{"user_id": "query:user_id"}`."""
    denial_status: dict[str, int] = {}
    """Statuses that the keyspace's clients know, by verdict code."""
    require_balance: bool = False
    """Is a use without a cost refused, too, where wallet or quota are at zero?"""
    required_dimensions: tuple[str, ...] = ()
    """What every use of a key must name."""


class VerifyRequest(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/verify`: is this secret good for this use?"""

    secret: str
    keyspace_id: str | None = None
    permissions: tuple[str, ...] = ()
    project_id: str | None = None
    model: str | None = None
    provider: str | None = None
    tenant: Tenant | None = None
    ip: str | None = None
    cost_micros: int | None = None
    reserve_micros: int | None = None
    request_id: str | None = None
    metadata: dict[str, Any] | None = None


class VerifyBatchRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/verify/batch`: answered in order, each on its own."""

    items: list[VerifyRequest]


class ConnectRequest(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/edges/connect`."""

    edge_id: str | None = None
    """The one it had before, if any; the ledger gives a new one otherwise."""
    incarnation: str
    """32 hex digits, new for every start and fork of a process."""
    version: _Version = ""
    """The edge's version, for people."""
    keyspace_ids: tuple[str, ...] = ()
    """The keyspaces it serves; none means all that its root key may see."""
    nonce: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Of an earlier answer: the same incarnation asks for the terms again, and proves who it is."""
    proof: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """32 hex digits that only the holder of the edge key can make (`prove_identity`)."""


class ConnectAnswer(msgspec.Struct, kw_only=True):
    """Everything an edge needs to take part."""

    edge_id: _Name
    """The edge's id: its own, or a new one."""
    root_key_id: _Name
    """The root key that the edge takes part with."""
    nonce: _Nonce
    """48 hex digits, drawn by the ledger: part of who this incarnation is, and of its key."""
    edge_key: _EdgeKey | None
    """64 hex digits: seals this incarnation's messages and grants. Told once, never to who asks again."""
    keyspaces: list[KeyspaceView]
    """The keyspaces that it serves."""
    lease_ms: _Milliseconds
    """How long a lease lasts, in milliseconds."""
    ping_ms: _Milliseconds
    """How often to ask for a new one, in milliseconds."""
    drift: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    """What clocks may be apart, as a part of the time that passed."""
    max_serve_stale_ms: _Small
    """The longest `serve_stale` that is granted, whatever is asked for."""
    partition: _Small
    """The part of the log that this is of."""
    epoch: _Small
    """Raised by the operator after a restore: positions of another epoch are void."""
    lineage: bytes
    """The ledger process that answers."""
    as_of: _Number
    """The log's head, as of which it told the keyspaces."""
    nats_urls: list[str] = []
    """Where NATS is."""
    nats_user: str | None = None
    """Whom to log in as; null: no user."""
    nats_password: str | None = None
    """The password; null: none."""
    nats_jwt: str | None = None
    """The user as a JWT; null: not by JWT."""
    nats_seed: str | None = None
    """What signs with that JWT; null: not by JWT."""


class KeyspacesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/edges/keyspaces`: what do requests look like now?"""

    keyspace_ids: tuple[str, ...] = ()
    """None means all that the root key may see."""


class KeyspacesAnswer(msgspec.Struct, kw_only=True):
    """The owner's committed state of keyspaces, as of a position."""

    keyspaces: list[KeyspaceView]
    """The keyspaces as they are now."""
    as_of: int
    """The log's number up to which it is true."""
    partition: int
    """The part of the log that this is of."""
    epoch: int
    """Raised by the operator after a restore: positions of another epoch are void."""
    lineage: bytes
    """The ledger process that answers."""


class FillRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/edges/fill`: what is known of this fingerprint?"""

    fingerprint: str
    """64 hex digits; the secret itself never leaves the edge."""
    keyspace_id: str
    """The keyspace that the secret is of."""


class FillAnswer(msgspec.Struct, kw_only=True):
    """The owner's committed state of one secret, as of a position."""

    facts: KeyFacts | None
    """All that verdicts rest on; null: there is no such secret."""
    as_of: int
    """The facts' own `as_of` says the same."""
    partition: int
    """The part of the log that this is of."""
    epoch: int
    """Raised by the operator after a restore: positions of another epoch are void."""
    utc: int
    """The ledger's time of day, microseconds."""
    lineage: bytes
    """The ledger process that answers: numbers of another one may be of another history."""


ChangeKind = Literal["key", "organization", "project", "plan", "keyspace"]


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that edges may remember has changed: what they know of it is void."""

    position: int
    kind: ChangeKind
    id: str
    fingerprints: tuple[bytes, ...] = ()
    """Of a key: those of all its live secrets, old and new."""
    narrowing: bool = True
    """False: it only grants, so nobody waits for it."""


class ChangeMessage(msgspec.Struct, frozen=True, array_like=True):
    """What one commit changed, broadcast to all edges. It can only take away."""

    partition: int
    epoch: int
    lineage: bytes
    """The ledger process that speaks: its messages form one chain."""
    prev: int
    """The position of the message before."""
    position: int
    changes: tuple[Change, ...]


class EdgeIdentity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who an edge is: no part of it alone, and nobody else has all of them."""

    root_key_id: _Name
    edge_id: _Name
    incarnation: Annotated[bytes, msgspec.Meta(min_length=INCARNATION_LENGTH, max_length=INCARNATION_LENGTH)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_LENGTH, max_length=NONCE_LENGTH)]
    """Drawn by the ledger when the incarnation connected."""


class LeaseRequest(msgspec.Struct, frozen=True, array_like=True):
    """An edge asks for a lease, or only acknowledges (`number` 0)."""

    who: EdgeIdentity
    number: _Number
    """Counts this incarnation's requests; the grant repeats it."""
    partition: int
    epoch: int
    vouched: _Number
    """The head of the last grant: up to there the edge knows everything."""
    mark: int
    """The mark of that head, as the grant had it: which history it is the head of."""
    chain: _Chain
    """Stands for the change messages applied since: proves which, to who sent them."""
    position: int
    """Where the edge believes to be; for people."""
    serve_stale_ms: int
    version: _Version


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """The ledger's answer: what changed, and how long the edge may rely on the rest."""

    who: EdgeIdentity
    number: int
    partition: int
    epoch: int
    lineage: bytes
    head: int
    mark: int
    """The mark of the log's history up to `head`: the same number of another history has another."""
    last_message: int
    """The position of the last change message up to `head`: the one that `chain` ends with."""
    chain: _Chain
    confirmed: bool
    """The request's chain was known: all that the edge heard since `vouched` was true."""
    reset: bool
    """The changes cannot be had any more: forget everything."""
    changes: tuple[Change, ...]
    lease_ns: int
    """From the sending of the request, on the edge's clock."""
    utc: int
    """The ledger's time of day, microseconds."""


_encoder = msgspec.msgpack.Encoder()
_lease_requests = msgspec.msgpack.Decoder(LeaseRequest)
_grants = msgspec.msgpack.Decoder(Grant)
_change_messages = msgspec.msgpack.Decoder(ChangeMessage)


def next_chain(chain: bytes, message: bytes) -> bytes:
    """The chain after one more change message; nobody finds another message with the same one."""
    return blake2b(message, digest_size=16, key=chain).digest()


def _seal_of(payload: bytes, key: bytes) -> bytes:
    return blake2b(payload, digest_size=SEAL_LENGTH, key=key).digest()


def _unsealed(data: bytes, key: bytes) -> bytes | None:
    payload = data[SEAL_LENGTH:]
    return payload if compare_digest(data[:SEAL_LENGTH], _seal_of(payload, key)) else None


def prove_identity(who: EdgeIdentity, key: bytes) -> bytes:
    """What shows the ledger, over HTTP, that the incarnation itself asks again."""
    return blake2b(_encoder.encode(who), digest_size=SEAL_LENGTH, key=key, person=b"keyledger proof").digest()


def seal_request(request: LeaseRequest, key: bytes) -> bytes:
    """The request with a seal that only this incarnation and the ledger can make."""
    payload = _encoder.encode(request)
    return _seal_of(payload, key) + payload


def read_request(data: bytes) -> LeaseRequest | None:
    """The request inside; its seal is still to be checked, with the key of its incarnation."""
    try:
        request = _lease_requests.decode(data[SEAL_LENGTH:])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # Its version is shown to people.
    return request if request.version.isprintable() else None


def request_is_sealed(data: bytes, key: bytes) -> bool:
    """Did the holder of this key write the request?"""
    return _unsealed(data, key) is not None


def seal_grant(grant: Grant, key: bytes) -> bytes:
    """The grant with a seal that only the ledger and this incarnation can make."""
    payload = _encoder.encode(grant)
    return _seal_of(payload, key) + payload


def open_grant(data: bytes, key: bytes) -> Grant | None:
    """The grant inside, or None when it is not the ledger's or not for this incarnation."""
    payload = _unsealed(data, key)
    if payload is None:
        return None
    try:
        return _grants.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_changes(message: ChangeMessage) -> bytes:
    """The message as it travels."""
    return _encoder.encode(message)


def read_changes(data: bytes) -> ChangeMessage | None:
    """The message inside, or None when it is none."""
    try:
        return _change_messages.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
