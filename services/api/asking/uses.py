"""What the hot paths are sent, and how a bad body is named by its field."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from domain.errors import InvalidError
from domain.metadata import MAX_METADATA_DEPTH, is_deeper
from keyledger_edge import NO_USE, Tenant, Use
from services.api.answering.problems import ProblemError
from services.api.asking.fields import MAX_METADATA_BYTES
from services.api.asking.reading import complaint, malformed

MAX_MICROS = 2**63 - 1
MAX_SECRET_LENGTH = 512
"""Longer than any keyspace's shape: such a secret is malformed, not a bad request."""
MAX_BATCH = 1_000
_MAX_PERMISSIONS = 100

Micros = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROS)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every body is: unknown fields are refused."""


class TenantBody(Body, kw_only=True):
    """Whose work the use is, inside the customer's own product."""

    org_id: Text | None = None
    user_id: Text | None = None


class UseBody(Body, kw_only=True):
    """What somebody wants to do with a key."""

    model: Text | None = None
    provider: Text | None = None
    project_id: Text | None = None
    tenant: TenantBody | None = None
    metadata: dict[str, Any] | None = None


class VerifyBody(UseBody, kw_only=True):
    """Is this secret good for this use?"""

    secret: str
    keyspace_id: Text | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    cost_micros: Micros | None = None
    reserve_micros: Micros | None = None
    request_id: Text | None = None


class VerifyBatchBody(Body, kw_only=True):
    """Many questions, answered in order, each on its own."""

    items: Annotated[list[VerifyBody], msgspec.Meta(max_length=MAX_BATCH)]


class ExplainBody(UseBody, kw_only=True):
    """Why would this use be allowed or refused?"""

    secret: str | None = None
    key_id: Text | None = None
    keyspace_id: Text | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    cost_micros: Micros | None = None
    reserve_micros: Micros | None = None
    as_of: Any = None


class MeteringBody(UseBody, kw_only=True):
    """A use that costs money, of a key by its secret or its id."""

    secret: str | None = None
    key_id: Text | None = None
    keyspace_id: Text | None = None
    permissions: tuple[Text, ...] | None = None
    ip: str | None = None
    """Where the use came from: a key with `allowed_ips` is charged for no other."""
    request_id: Text
    amount_micros: Micros


class ChargeBody(MeteringBody, kw_only=True):
    """Spend money on one request."""


class ChargeBatchBody(Body, kw_only=True):
    """Many charges, each on its own, answered in order."""

    items: Annotated[list[ChargeBody], msgspec.Meta(max_length=MAX_BATCH)]


class ReserveBody(MeteringBody, kw_only=True):
    """Hold money for a use whose price is not known yet."""

    expires_in_seconds: Seconds = 600


class RefundBody(Body, kw_only=True):
    """Give back a charge, in part or (without an amount) whole."""

    request_id: Text
    amount_micros: Micros | None = None


class CaptureBody(Body, kw_only=True):
    """Turn what is held, or part of it, into a charge."""

    request_id: Text
    amount_micros: Micros
    final: bool = True


class ReleaseBody(Body, kw_only=True):
    """Give back what is still held."""

    request_id: Text | None = None


class RevokeSelfBody(Body, kw_only=True):
    """Whoever holds a secret may kill its key."""

    reason: Annotated[str, msgspec.Meta(max_length=1_000)] | None = None


B = TypeVar("B", bound=Body)
U = TypeVar("U", bound=UseBody)


class Reader(Generic[B]):
    """Reads one kind of body."""

    def __init__(self, kind: type[B], *, may_be_empty: bool = False) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        self._may_be_empty = may_be_empty
        self._has_metadata = issubclass(kind, UseBody)

    def __call__(self, data: bytes) -> B:
        """The body, or a problem that names the field."""
        if not data and self._may_be_empty:
            data = b"{}"
        try:
            body = self._decode(data)
        except msgspec.ValidationError as error:
            raise complaint(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            data = _marked(data)
            body = _decoded(self._decode, data)
        if self._has_metadata and body.metadata:  # type: ignore[attr-defined]  # a UseBody
            check_metadata(body.metadata)  # type: ignore[attr-defined]
        if b"\\u00" in data:
            _refuse_control_characters(body)
        return body


class _Items(Body, kw_only=True):
    """Many bodies, each still as it was sent."""

    items: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_BATCH)]


class BatchReader(Generic[U]):
    """Reads many bodies, each on its own: a bad one spoils only itself, and is what is wrong with it."""

    def __init__(self, kind: type[U], whole: type[Any]) -> None:
        self._read = Reader(kind)
        self._read_whole = Reader(whole)
        self._split = msgspec.json.Decoder(_Items).decode

    def __call__(self, data: bytes) -> list[U] | list[U | Exception]:
        """Each item's body or refusal, in order; or a problem with what stands around them."""
        try:
            whole: list[U] = self._read_whole(data).items
            for item in whole:
                check_metadata(item.metadata)
        except (ProblemError, InvalidError):
            # One by one takes seven times as long, so only where something is wrong.
            return [self._item(bytes(item)) for item in _decoded(self._split, _marked(data)).items]
        return whole

    def _item(self, data: bytes) -> U | Exception:
        try:
            return self._read(data)
        except (ProblemError, InvalidError) as error:
            return error


_SURROGATE: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*+)"
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
"""A pair of surrogates, or half of one; behind it no backslash but escaped ones."""


def _marked(data: bytes) -> bytes:
    """The same with a NUL's escape for each half of a surrogate pair, which is no character either.

    The decoder takes a body with one for no JSON at all, though it is; so the field can be named, and
    the other items of a batch are answered.
    """
    return _SURROGATE.sub(lambda found: found[1] + rb"\u0000" if found[2] else found[0], data)


def _decoded(decode: Callable[[bytes], B], data: bytes) -> B:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed() from None


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _refuse_control_characters(body: Body) -> None:
    """PostgreSQL's text holds no NUL, and nobody's ids hold control characters."""
    try:
        _look_for_control_characters(msgspec.to_builtins(body), "")
    except RecursionError:  # `as_of` takes anything yet
        raise malformed() from None


def _look_for_control_characters(value: Any, path: str) -> None:
    if isinstance(value, str):
        if any(character < " " and character not in "\t\n\r" for character in value):
            raise InvalidError(path or "body", "holds control characters")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _look_for_control_characters(name, path or "body")
            _look_for_control_characters(inner, _join(path, name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _look_for_control_characters(inner, f"{path}[{index}]")


def use_of(body: UseBody, *, permissions: tuple[str, ...] | None = None, ip: str | None = None) -> Use:
    """What a body asks to do."""
    tenant = body.tenant
    if (
        permissions is None
        and ip is None
        and tenant is None
        and body.model is None
        and body.project_id is None
        and body.provider is None
    ):
        return NO_USE
    if permissions is not None and len(permissions) > _MAX_PERMISSIONS:
        raise InvalidError("permissions", f"at most {_MAX_PERMISSIONS}")
    if ip is not None:
        _check_ip(ip)
    return Use(
        permissions=permissions or (),
        project_id=body.project_id,
        model=body.model,
        provider=body.provider,
        tenant=None if tenant is None else Tenant(org_id=tenant.org_id, user_id=tenant.user_id),
        ip=ip,
    )


def _check_ip(ip: str) -> None:
    if not _is_address(ip):
        raise InvalidError("ip", "not an IPv4 or IPv6 address")


@lru_cache(maxsize=4096)  # reading one takes longer than judging the key
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def check_metadata(metadata: dict[str, Any] | None) -> None:
    """Metadata is kept with the charge for ever, so it stays small and flat."""
    if not metadata:
        return
    if is_deeper(metadata):
        raise InvalidError("metadata", f"nested at most {MAX_METADATA_DEPTH} deep")
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidError("metadata", f"at most {MAX_METADATA_BYTES} bytes as JSON")


read_verify = Reader(VerifyBody)
read_verify_batch = BatchReader(VerifyBody, VerifyBatchBody)
read_explain = Reader(ExplainBody)
read_charge = Reader(ChargeBody)
read_charge_batch = BatchReader(ChargeBody, ChargeBatchBody)
read_reserve = Reader(ReserveBody)
read_refund = Reader(RefundBody)
read_capture = Reader(CaptureBody)
read_release = Reader(ReleaseBody, may_be_empty=True)
read_revoke_self = Reader(RevokeSelfBody, may_be_empty=True)
