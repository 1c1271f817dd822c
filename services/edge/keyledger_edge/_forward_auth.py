"""Forward-auth: reads a proxied request as a use of a key, and answers the verdict in HTTP.

Pure functions over headers and URLs, the same for the ledger and for the sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from keyledger_edge.errors import AmbiguousCredentialsError, BadRequestError
from keyledger_language import codes
from keyledger_language.bounded_dicts import BoundedCache
from keyledger_language.judging import ip_allowed
from keyledger_language.messages import KeyspaceView
from keyledger_language.rate_limits import RateState
from keyledger_language.uses import NO_USE, Tenant, Use
from keyledger_language.verdicts import Verdict

Headers = Iterable[tuple[bytes, bytes]]
"""As in ASGI: names in lower case."""

AnswerHeaders = list[tuple[bytes, bytes]]

_MAX_COST: Final = 2**63 - 1
_MOST_DIGITS: Final = 40
_UNIX: Final = "unix"
_MOST_REMEMBERED: Final = 1_000
_UNAUTHORIZED: Final = 401
_NO_STORE: Final = (b"cache-control", b"no-store")
_NGINX_UNDERSTANDS: Final = frozenset({200, 401, 403})


class ForwardedUse(msgspec.Struct, frozen=True, gc=False):
    """A proxied request, read: a secret, the use to check it for, and what the use costs."""

    secret: str | None
    """None: the request has no secret."""
    use: Use
    cost_micros: int | None
    request_id: str | None


class HttpAnswer(NamedTuple):
    """A whole HTTP answer."""

    status: int
    headers: AnswerHeaders
    body: bytes


def refuse_fragment(scope: Mapping[str, Any]) -> None:
    """Refuse a path with a `#`: ASGI hides what follows it. The server reports it (`keyledger.fragment`)."""
    if scope.get("extensions", _NOTHING).get("keyledger.fragment"):
        raise BadRequestError("The path that the proxy appended contains a #.", field="path")


def read_headers(headers: Headers) -> dict[str, list[str]]:
    """Header values by lower-case name, in order."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip(" \t"))
    return found


def read_use(
    headers: Headers,
    query: bytes | str,
    keyspace: KeyspaceView,
    *,
    path: str | None = None,
    peer: str | None = None,
    trusted_proxies: tuple[str, ...] = (),
) -> ForwardedUse:
    """Read a forwarded request. `query` is the query string of the forward-auth request itself.

    `path` is what follows `/v1/forward-auth/` (it may be empty), None without that slash: Envoy
    puts the original path and query there, so the headers in which other proxies send the original URI
    are ignored then.
    Raises BadRequestError (400) if the request cannot be read, such as AmbiguousCredentialsError.
    """
    wanted = _wanted(keyspace, believed=bool(trusted_proxies))
    telling = [pair for pair in headers if pair[0] in wanted.headers]
    if len(telling) == 1 and telling[0][0] in wanted.alone:
        return ForwardedUse(_secret_alone(telling[0], wanted), _from(peer), None, None)
    original = None
    if path is None and any(name in _URI_HEADERS for name, _ in telling):
        original = _original_uri([value for name, value in telling if name in _URI_HEADERS])
        telling = [pair for pair in telling if pair[0] not in _URI_HEADERS]
    named = read_headers(telling)
    parameters: Mapping[str, Sequence[str]] = {}
    if wanted.query:
        parameters = _parameters(query if original is None else original.partition("?")[2])
    return ForwardedUse(
        find_secret(named, parameters, keyspace),
        _use(named, parameters, keyspace, _client_ip(named, peer, trusted_proxies)),
        _cost(_said(named, "x-keyledger-cost-micros")),
        _said(named, "x-keyledger-request-id"),
    )


class _Wanted(NamedTuple):
    """The parts of a request that matter to a keyspace; most of a request's headers do not."""

    keyspace: KeyspaceView
    headers: frozenset[bytes]
    query: bool
    alone: dict[bytes, bytes]
    """Headers that carry a secret in only one way (a scheme, or none). If a request has one of them
    and no other header that matters, nothing else has to be read."""


_USE_HEADERS: Final = frozenset(
    f"x-keyledger-{name}".encode()
    for name in ("model", "project", "permission", "provider", "cost-micros", "request-id")
)
_NOTHING: Final[Mapping[str, Any]] = {}
_URI_HEADERS: Final = frozenset({b"x-original-uri", b"x-forwarded-uri"})
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_known_wanted: Final = BoundedCache[tuple[int, bool], _Wanted](_MOST_REMEMBERED)


def _wanted(keyspace: KeyspaceView, *, believed: bool) -> _Wanted:
    """What to read; `believed`: there are trusted proxies, whose headers name the client's address."""
    known = _known_wanted.get((id(keyspace), believed))
    if known is not None and known.keyspace is keyspace:
        return known
    locations = (*keyspace.credential_locations, *keyspace.tenant_locations.values())
    query = any(one.startswith("query:") for one in locations)
    headers = {one.split(":")[1].lower().encode() for one in locations if one.startswith("header:")}
    headers |= _URI_HEADERS
    if believed:
        headers |= {b"x-forwarded-for", b"x-real-ip"}
    alone = {} if query or believed else _alone(keyspace)
    wanted = _Wanted(keyspace, _USE_HEADERS | headers, query, alone)
    _known_wanted.put((id(keyspace), believed), wanted)
    return wanted


def _alone(keyspace: KeyspaceView) -> dict[bytes, bytes]:
    manners: dict[bytes, set[bytes]] = {}
    for location in keyspace.credential_locations:
        _, name, scheme = (*location.split(":"), "")[:3]
        manners.setdefault(name.lower().encode(), set()).add(scheme.lower().encode())
    tenants = {one.split(":")[1].lower().encode() for one in keyspace.tenant_locations.values()}
    return {
        name: next(iter(schemes))
        for name, schemes in manners.items()
        if len(schemes) == 1 and name not in tenants
    }


def _secret_alone(pair: tuple[bytes, bytes], wanted: _Wanted) -> str | None:
    name, value = pair
    value = value.strip(b" \t")
    scheme = wanted.alone[name]
    if scheme:
        said, _, rest = value.partition(b" ")
        value = rest.strip() if said.lower() == scheme else b""
    return str(value, "latin-1") or None


@lru_cache(maxsize=1024)
def _from(peer: str | None) -> Use:
    """A use that names only the client's address."""
    return NO_USE if peer is None else Use(ip=peer)


def read_direct_use(
    headers: Headers,
    query: bytes | str,
    keyspace: KeyspaceView,
    *,
    peer: str | None = None,
    trusted_proxies: tuple[str, ...] = (),
) -> ForwardedUse:
    """Read a request that came directly from its client: its headers about its use and cost are ignored.

    A client itself may name only its secret, its tenant and its request id.
    """
    named = read_headers(headers)
    parameters = _parameters(query)
    tenant = _tenant(named, parameters, keyspace.tenant_locations)
    use = Use(tenant=tenant, ip=_client_ip(named, peer, trusted_proxies))
    return ForwardedUse(
        find_secret(named, parameters, keyspace),
        NO_USE if use == NO_USE else use,
        None,
        _said(named, "x-keyledger-request-id"),
    )


def find_secret(
    headers: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Sequence[str]],
    keyspace: KeyspaceView,
) -> str | None:
    """The one secret in the places where the keyspace allows it, or None.

    Values of the keyspace's shape take precedence over others (a JWT beside a key is not a
    candidate); two different values of that shape are refused.
    """
    shown = [
        value
        for location in keyspace.credential_locations
        for value in _values_at(location, headers, parameters)
    ]
    candidates = {value for value in shown if keyspace.shape.looks_right(value)}
    if len(candidates) > 1:
        raise AmbiguousCredentialsError
    return candidates.pop() if candidates else shown[0] if shown else None


def _values_at(
    location: str,
    headers: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Sequence[str]],
) -> list[str]:
    """Non-empty values at `header:<name>`, `header:<name>:<scheme>` or `query:<name>`."""
    place, _, name = location.partition(":")
    if place == "query":
        return [value for value in parameters.get(name, ()) if value]
    name, _, scheme = name.partition(":")
    values = headers.get(name.lower(), ())
    if scheme:
        values = [_without_scheme(value, scheme) for value in values]
    return [value for value in values if value]


def _without_scheme(value: str, scheme: str) -> str:
    said, _, rest = value.partition(" ")
    return rest.strip() if said.lower() == scheme.lower() else ""


def _original_uri(said: Sequence[bytes]) -> str | None:
    """The URI that nginx (`X-Original-URI`) or Traefik (`X-Forwarded-Uri`) sends; refused if two differ.

    URIs that programs read differently are refused, too: the upstream might read another query than this.
    """
    if any(value != said[0] for value in said):
        raise BadRequestError("The request names two different original URIs.", field="X-Original-URI")
    uri = str(said[0], "latin-1")
    if "#" in uri or _CONTROL.search(uri):
        raise BadRequestError("The original URI contains a # or a control character.", field="X-Original-URI")
    return uri or None


def _parameters(query: bytes | str) -> dict[str, list[str]]:
    if isinstance(query, bytes):
        query = query.decode("latin-1")
    found: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise BadRequestError("The query has too many fields.", field="query") from None
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _first(headers: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = headers.get(name)
    return (values[0] or None) if values else None


def _said(headers: Mapping[str, Sequence[str]], name: str) -> str | None:
    """The value of one of Keyledger's own headers; a proxy sends it once, so a second is the client's."""
    values = headers.get(name)
    if not values:
        return None
    value = values[0]
    if len(values) > 1 and any(other != value for other in values):
        raise BadRequestError(f"The request has two different {_title(name)} headers.", field=_title(name))
    value = _from_utf8(value, _title(name))
    if _CONTROL.search(value):
        raise BadRequestError(f"{_title(name)} contains a control character.", field=_title(name))
    return value or None


def _from_utf8(value: str, field: str) -> str:
    """Text is UTF-8, in headers as in bodies; other bytes would change when forwarded to the owner."""
    if value.isascii():
        return value
    text = value.encode("latin-1").decode(errors="replace")
    # Another process may have replaced invalid bytes by the replacement character already.
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise BadRequestError(f"{field} is not UTF-8.", field=field)
    return text


def _title(name: str) -> str:
    return name.title()


def _use(
    headers: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Sequence[str]],
    keyspace: KeyspaceView,
    ip: str | None,
) -> Use:
    permissions = _said(headers, "x-keyledger-permission") or ""
    use = Use(
        permissions=tuple(one.strip() for one in permissions.split(",") if one.strip()),
        project_id=_said(headers, "x-keyledger-project"),
        model=_said(headers, "x-keyledger-model"),
        provider=_said(headers, "x-keyledger-provider"),
        tenant=_tenant(headers, parameters, keyspace.tenant_locations),
        ip=ip,
    )
    return NO_USE if use == NO_USE else use


def _tenant(
    headers: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Sequence[str]],
    locations: Mapping[str, str],
) -> Tenant | None:
    found = {
        part: _one_value(part, _texts_at(location, part, headers, parameters))
        for part, location in locations.items()
    }
    org_id, user_id = found.get("org_id"), found.get("user_id")
    return Tenant(org_id=org_id, user_id=user_id) if org_id or user_id else None


def _texts_at(
    location: str, part: str, headers: Mapping[str, Sequence[str]], parameters: Mapping[str, Sequence[str]]
) -> list[str]:
    values = _values_at(location, headers, parameters)
    return [_from_utf8(value, part) for value in values] if location.startswith("header:") else values


def _one_value(part: str, values: list[str]) -> str | None:
    if len(set(values)) > 1:
        raise BadRequestError(f"The request names two different tenants ({part}).", field=part)
    return values[0] if values else None


def _cost(text: str | None) -> int | None:
    if text is None:
        return None
    # The number of digits is bounded: the time to parse them grows faster than their number.
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS or int(text) > _MAX_COST:
        raise BadRequestError("The cost is not a whole number of micros.", field="X-Keyledger-Cost-Micros")
    return int(text)


def _client_ip(
    headers: Mapping[str, Sequence[str]], peer: str | None, trusted: tuple[str, ...]
) -> str | None:
    """The nearest address that is not a trusted proxy; only trusted proxies' forwarded addresses count."""
    if not _is_trusted(peer, trusted):
        return peer
    hops = [hop.strip() for hop in ",".join(headers.get("x-forwarded-for", ())).split(",") if hop.strip()]
    if not hops:
        return _first(headers, "x-real-ip") or peer
    for hop in reversed(hops):
        address = _address(hop)
        if address is None:
            return None
        if not _is_trusted(str(address), trusted):
            return str(address)
    return str(_address(hops[0]))


def _is_trusted(peer: str | None, trusted: tuple[str, ...]) -> bool:
    """A peer on a unix socket has no address; it is trusted when `unix` is listed."""
    if not peer:
        return _UNIX in trusted
    networks = tuple(one for one in trusted if one != _UNIX)
    return bool(networks) and ip_allowed(networks, peer)


def _address(hop: str) -> IPv4Address | IPv6Address | None:
    """An address with or without a port, as proxies write it."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return ip_address(hop)
    except ValueError:
        return None


def status_of(code: str, keyspace: KeyspaceView | None) -> int:
    """A code's status, as the keyspace's clients expect it. An unknown code is a refusal."""
    own = keyspace.denial_status.get(code) if keyspace is not None and code != codes.VALID else None
    return own or codes.STATUS_OF_CODE.get(code, 403)


def answer_verdict(
    verdict: Verdict,
    keyspace: KeyspaceView | None,
    *,
    proxy: str | None = None,
    request_id: str | None = None,
) -> HttpAnswer:
    """The answer to a proxy for a verdict."""
    status = status_of(verdict.code, keyspace)
    headers = [*_identity_headers(verdict), *rate_limit_headers(verdict.rate_limits)]
    if verdict.valid:
        return _for_proxy(HttpAnswer(status, [*headers, _NO_STORE], b""), proxy)
    if verdict.code == codes.RATE_LIMITED:
        headers.append((b"retry-after", b"%d" % retry_after(verdict.rate_limits)))
    if verdict.code == codes.LEDGER_UNREACHABLE:
        headers.append((b"retry-after", b"1"))
    if status == _UNAUTHORIZED:
        headers.append((b"www-authenticate", _challenge(verdict.code)))
    detail = _DETAILS.get(verdict.code)
    return _for_proxy(_problem(status, verdict.code, detail, headers, request_id=request_id), proxy)


def answer_error(
    error: BadRequestError, *, proxy: str | None = None, request_id: str | None = None
) -> HttpAnswer:
    """The answer to a request that could not be read."""
    errors = [{"field": error.field, "message": str(error)}] if error.field else None
    return _for_proxy(_problem(400, error.code, str(error), [], request_id=request_id, errors=errors), proxy)


def answer_problem(
    status: int,
    code: str,
    detail: str,
    *,
    proxy: str | None = None,
    request_id: str | None = None,
    errors: list[dict[str, str]] | None = None,
    title: str | None = None,
) -> HttpAnswer:
    """Any other refusal, such as `proxy_unauthenticated`; `title`: for a code that only the ledger has."""
    headers = [(b"www-authenticate", b'Bearer realm="keyledger"')] if status == _UNAUTHORIZED else []
    told = _problem(status, code, detail, headers, request_id=request_id, errors=errors, title=title)
    return _for_proxy(told, proxy)


def retry_after(states: Sequence[RateState]) -> int:
    """Seconds until another try makes sense."""
    return max((one.reset_seconds for one in states if one.remaining <= 0), default=1) or 1


def rate_limit_headers(states: Sequence[RateState]) -> AnswerHeaders:
    """`RateLimit-Policy` and `RateLimit`, as the IETF draft specifies them."""
    if not states:
        return []
    policies = ", ".join(f"{_quoted(one.name)};q={one.limit};w={one.window_seconds}" for one in states)
    standing = ", ".join(f"{_quoted(one.name)};r={one.remaining};t={one.reset_seconds}" for one in states)
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", standing.encode())]


def _quoted(name: str) -> str:
    """A structured field's string: printable ASCII, quotes and backslashes escaped."""
    safe = "".join(one if " " <= one <= "~" else "?" for one in name)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _identity_headers(verdict: Verdict) -> AnswerHeaders:
    """The headers that identify the key and its owner.

    A valid key gets all of them, also empty ones: Envoy would keep the client's own if one were missing.
    """
    headers = [
        (b"x-keyledger-code", verdict.code.encode()),
        (b"x-keyledger-key-id", (verdict.key_id or "").encode()),
        (b"x-keyledger-organization-id", (verdict.organization_id or "").encode()),
        (b"x-keyledger-plan-id", (verdict.plan_id or "").encode()),
    ]
    return headers if verdict.valid else [pair for pair in headers if pair[1]]


def _challenge(code: str) -> bytes:
    if code == codes.MISSING:
        return b'Bearer realm="keyledger"'
    return b'Bearer realm="keyledger", error="invalid_token"'


def _for_proxy(answer: HttpAnswer, proxy: str | None) -> HttpAnswer:
    """For nginx, which turns all but 2xx, 401 and 403 into a 500: 403, with the real status in a header."""
    if proxy != "nginx":
        return answer
    headers = [*answer.headers, (b"x-keyledger-status", b"%d" % answer.status)]
    status = answer.status if answer.status in _NGINX_UNDERSTANDS else 403
    return HttpAnswer(status, headers, answer.body)


def _problem(
    status: int,
    code: str,
    detail: str | None,
    headers: AnswerHeaders,
    *,
    request_id: str | None,
    errors: list[dict[str, str]] | None = None,
    title: str | None = None,
) -> HttpAnswer:
    title = title or codes.TITLE_OF_CODE.get(code) or code.replace("_", " ").capitalize()
    problem: dict[str, object] = {
        "type": f"urn:keyledger:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail or title,
        "code": code,
    }
    if request_id is not None:
        problem["request_id"] = request_id
    if errors:
        problem["errors"] = errors
    body = msgspec.json.encode(problem)
    return HttpAnswer(
        status,
        [*headers, (b"content-type", b"application/problem+json"), _NO_STORE],
        body,
    )


_DETAILS: Final[dict[str, str]] = {
    codes.LEDGER_UNREACHABLE: "The ledger cannot be reached, so the key cannot be verified.",
    codes.MISSING: "The request has no key.",
    codes.MALFORMED: "This is not a key of this service: it is truncated or mistyped.",
    codes.NOT_FOUND: "There is no such key.",
    codes.REVOKED: "The key was revoked.",
    codes.EXPIRED: "The key has expired.",
    codes.ROTATED: "The key was rotated; use its new secret.",
    codes.DISABLED: "The key is disabled.",
    codes.ORGANIZATION_SUSPENDED: "The organization is suspended.",
    codes.IP_DENIED: "The key cannot be used from this address.",
    codes.PERMISSION_DENIED: "The key lacks the permission.",
    codes.PROJECT_DENIED: "The key cannot be used for this project.",
    codes.MODEL_DENIED: "The key cannot be used for this model.",
    codes.TENANT_DENIED: "The key cannot be used for this tenant.",
    codes.RATE_LIMITED: "Too many requests.",
    codes.API_KEY_QUOTA_EXCEEDED: "The key's quota is used up.",
    codes.PROJECT_QUOTA_EXCEEDED: "The project's quota is used up.",
    codes.ORGANIZATION_QUOTA_EXCEEDED: "The organization's quota is used up.",
    codes.BILLING_SHORTFALL: "The organization's wallet does not cover this use.",
}
