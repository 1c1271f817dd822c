"""The messages between edge and ledger: bodies over HTTP, sealed bytes over NATS.

Over NATS go positions, ids and fingerprints, never a name, owner, address or metadata.
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
"""Followed by `.<root key id>`: the messages of each root key's edges are received separately."""
CHANGES_SUBJECT: Final = "keyledger.edge.changes"
GRANT_SUBJECT: Final = "keyledger.edge.grant"
"""Followed by `.<root key id>.<edge id>`: an edge receives only the grants of its own root key."""

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
    """What an edge has to know of a keyspace to read and answer requests."""

    keyspace_id: str
    """The keyspace's id."""
    name: str = ""
    """The keyspace's name, for people."""
    shape: SecretShape
    """The shape of its secrets."""
    credential_locations: tuple[str, ...] = ("header:Authorization:Bearer", "header:X-API-Key")
    """Where a request may carry a secret, such as `header:X-API-Key`."""
    tenant_locations: dict[str, str] = {}
    """Where a request carries a use's tenant, such as `{"user_id": "query:user_id"}`."""
    denial_status: dict[str, int] = {}
    """The statuses that the keyspace's clients expect, by verdict code."""
    require_balance: bool = False
    """Whether a use without a cost is also refused when a quota or the wallet is at zero."""
    required_dimensions: tuple[str, ...] = ()
    """What every use of a key must name."""


class VerifyRequest(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/verify`: a secret, and the use to check it for."""

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
    """The edge's earlier id, if it had one; otherwise the ledger gives a new one."""
    incarnation: str
    """32 hex digits, new for every start and fork of a process."""
    version: _Version = ""
    """The edge's version, for people."""
    keyspace_ids: tuple[str, ...] = ()
    """The keyspaces that the edge serves; an empty list means all that its root key may see."""
    nonce: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """The nonce of an earlier answer, if the same incarnation asks for the terms again; see `proof`."""
    proof: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """32 hex digits that only the holder of the edge key can compute (`prove_identity`)."""


class ConnectAnswer(msgspec.Struct, kw_only=True):
    """Everything an edge needs to take part."""

    edge_id: _Name
    """The edge's id: its earlier one, or a new one."""
    root_key_id: _Name
    """The root key that the edge takes part with."""
    nonce: _Nonce
    """48 hex digits, drawn by the ledger: part of this incarnation's identity, and of its key."""
    edge_key: _EdgeKey | None
    """64 hex digits: seals this incarnation's messages and grants. Sent once; null in a repeated answer."""
    keyspaces: list[KeyspaceView]
    """The keyspaces that the edge serves."""
    lease_ms: _Milliseconds
    """How long a lease lasts, in milliseconds."""
    ping_ms: _Milliseconds
    """How often to ask for a new lease, in milliseconds."""
    drift: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    """How far clocks may drift apart, as a fraction of the time that passed."""
    max_serve_stale_ms: _Small
    """The longest `serve_stale` that is granted, whatever the edge asks for."""
    partition: _Small
    """The partition of the log."""
    epoch: _Small
    """The log's epoch, raised by the operator after a restore: positions of another epoch are void."""
    lineage: bytes
    """The ledger process that answers."""
    as_of: _Number
    """The log's head as of which `keyspaces` is true."""
    nats_urls: list[str] = []
    """The addresses of NATS."""
    nats_user: str | None = None
    """The NATS user; null: none."""
    nats_password: str | None = None
    """The NATS user's password; null: none."""
    nats_jwt: str | None = None
    """The NATS user as a JWT; null: no JWT is used."""
    nats_seed: str | None = None
    """The seed that signs for that JWT; null: no JWT is used."""


class KeyspacesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/edges/keyspaces`: asks for the current request format of keyspaces."""

    keyspace_ids: tuple[str, ...] = ()
    """The keyspaces; an empty list means all that the root key may see."""


class KeyspacesAnswer(msgspec.Struct, kw_only=True):
    """The owner's committed state of keyspaces, as of a position."""

    keyspaces: list[KeyspaceView]
    """The keyspaces as they are now."""
    as_of: int
    """The log's head as of which the answer is true."""
    partition: int
    """The partition of the log."""
    epoch: int
    """The log's epoch, raised by the operator after a restore: positions of another epoch are void."""
    lineage: bytes
    """The ledger process that answers."""


class FillRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/edges/fill`: asks for the facts of one fingerprint."""

    fingerprint: str
    """64 hex digits; the secret itself never leaves the edge."""
    keyspace_id: str
    """The keyspace of the secret."""


class FillAnswer(msgspec.Struct, kw_only=True):
    """The owner's committed state of one secret, as of a position."""

    facts: KeyFacts | None
    """Everything that verdicts depend on; null: there is no such secret."""
    as_of: int
    """The log's head as of which the answer is true; the `as_of` of the facts is the same."""
    partition: int
    """The partition of the log."""
    epoch: int
    """The log's epoch, raised by the operator after a restore: positions of another epoch are void."""
    utc: int
    """The ledger's time of day, microseconds."""
    lineage: bytes
    """The ledger process that answers: positions of another one may belong to another history."""


ChangeKind = Literal["key", "organization", "project", "plan", "keyspace"]


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A change of something that edges may have in memory: what they know of it is void."""

    position: int
    kind: ChangeKind
    id: str
    fingerprints: tuple[bytes, ...] = ()
    """For a key: the fingerprints of all its live secrets, old and new."""
    narrowing: bool = True
    """False: the change only grants, so no fence waits for it."""


class ChangeMessage(msgspec.Struct, frozen=True, array_like=True):
    """The changes of one commit, broadcast to all edges. It can only take away."""

    partition: int
    epoch: int
    lineage: bytes
    """The ledger process that sends: its messages form one chain."""
    prev: int
    """The position of the previous message."""
    position: int
    changes: tuple[Change, ...]


class EdgeIdentity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An edge's identity: only all parts together identify it, and no other edge has them all."""

    root_key_id: _Name
    edge_id: _Name
    incarnation: Annotated[bytes, msgspec.Meta(min_length=INCARNATION_LENGTH, max_length=INCARNATION_LENGTH)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_LENGTH, max_length=NONCE_LENGTH)]
    """Drawn by the ledger when the incarnation connected."""


class LeaseRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request for a lease, or only an acknowledgement (`number` 0)."""

    who: EdgeIdentity
    number: _Number
    """Counts this incarnation's requests; the grant repeats it."""
    partition: int
    epoch: int
    vouched: _Number
    """The head of the last grant: up to there the edge knows all changes."""
    mark: int
    """The mark of that head, as in the grant: it identifies the history that the head belongs to."""
    chain: _Chain
    """A digest of the change messages applied since: it proves to their sender which ones they were."""
    position: int
    """Up to where the edge believes to know all changes; for people."""
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
    """The mark of the log's history up to `head`: the same position in another history has another mark."""
    last_message: int
    """The position of the last change message up to `head`: the one that `chain` ends with."""
    chain: _Chain
    confirmed: bool
    """Whether the request's chain is known: then all that the edge received since `vouched` is true."""
    reset: bool
    """True: the changes are no longer available, so the edge must clear its memory."""
    changes: tuple[Change, ...]
    lease_ns: int
    """Counts from the sending of the request, on the edge's clock."""
    utc: int
    """The ledger's time of day, microseconds."""


_encoder = msgspec.msgpack.Encoder()
_lease_requests = msgspec.msgpack.Decoder(LeaseRequest)
_grants = msgspec.msgpack.Decoder(Grant)
_change_messages = msgspec.msgpack.Decoder(ChangeMessage)


def next_chain(chain: bytes, message: bytes) -> bytes:
    """The chain after one more change message; finding another message with the same chain is infeasible."""
    return blake2b(message, digest_size=16, key=chain).digest()


def _seal_of(payload: bytes, key: bytes) -> bytes:
    return blake2b(payload, digest_size=SEAL_LENGTH, key=key).digest()


def _unsealed(data: bytes, key: bytes) -> bytes | None:
    payload = data[SEAL_LENGTH:]
    return payload if compare_digest(data[:SEAL_LENGTH], _seal_of(payload, key)) else None


def prove_identity(who: EdgeIdentity, key: bytes) -> bytes:
    """Proves to the ledger, over HTTP, that the same incarnation asks again."""
    return blake2b(_encoder.encode(who), digest_size=SEAL_LENGTH, key=key, person=b"keyledger proof").digest()


def seal_request(request: LeaseRequest, key: bytes) -> bytes:
    """The request with a seal that only this incarnation and the ledger can make."""
    payload = _encoder.encode(request)
    return _seal_of(payload, key) + payload


def read_request(data: bytes) -> LeaseRequest | None:
    """The request inside, or None if it is malformed. Its seal is not checked yet (`request_is_sealed`)."""
    try:
        request = _lease_requests.decode(data[SEAL_LENGTH:])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # The version is shown to people.
    return request if request.version.isprintable() else None


def request_is_sealed(data: bytes, key: bytes) -> bool:
    """Whether the holder of this key sealed the request."""
    return _unsealed(data, key) is not None


def seal_grant(grant: Grant, key: bytes) -> bytes:
    """The grant with a seal that only the ledger and this incarnation can make."""
    payload = _encoder.encode(grant)
    return _seal_of(payload, key) + payload


def open_grant(data: bytes, key: bytes) -> Grant | None:
    """The grant inside, or None if it is not from the ledger or not for this incarnation."""
    payload = _unsealed(data, key)
    if payload is None:
        return None
    try:
        return _grants.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_changes(message: ChangeMessage) -> bytes:
    """The message as bytes."""
    return _encoder.encode(message)


def read_changes(data: bytes) -> ChangeMessage | None:
    """The message inside, or None if it is malformed."""
    try:
        return _change_messages.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
