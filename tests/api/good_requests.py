"""One good request for each operation, on a ledger that has one of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from domain import commands as c
from services.api.operations import Operation
from tests.api.quick.world import Reply, call
from tests.api.world import Management


@dataclass(frozen=True, slots=True)
class Things:
    """One of everything, by the names that paths use."""

    ids: dict[str, str]
    secret: str
    """Of the key."""
    proxy_key: str
    """A root key that is bound to the keyspace."""


async def one_of_everything(api: Management) -> Things:
    """A key with money, a charge, a reservation, and what they rest on."""
    keyspace = await api.make_keyspace(prefix="acme_live_")
    unused = await api.make_keyspace(prefix="unused_")
    organization = await api.make_organization(credit=1_000_000)
    project, plan = await api.make_project(organization), await api.make_plan()
    limits = ({"name": "burst", "limit": 1_000, "window_seconds": 60},)
    made = await api.create(keyspace_id=keyspace.id, organization_id=organization.id, rate_limits=limits)
    key_id = made["key"]["id"]
    asked = {"key_id": key_id, "request_id": "r-1", "amount_micros": 5_000}
    charge = (await api.post("/v1/charges", asked)).json["charge"]
    held = (await api.post("/v1/reservations", {**_HELD, **asked, "request_id": "r-0"})).json["reservation"]
    suspended, disabled = await api.make_organization(), await api.make_key(keyspace, organization)
    await api.do(c.SuspendOrganization(organization_id=suspended.id))
    await api.do(c.DisableKey(key_id=disabled.id))
    ids = {
        "suspended_organization_id": suspended.id,
        "disabled_key_id": disabled.id,
        "keyspace_id": keyspace.id,
        "unused_keyspace_id": unused.id,
        "organization_id": organization.id,
        "project_id": project.id,
        "plan_id": plan.id,
        "key_id": key_id,
        "charge_id": charge["id"],
        "reservation_id": held["id"],
        "request_id": "r-1",
        "position": charge["position"],
        "path": "models",
    }
    return Things(ids, made["secret"], await api.make_root("verify", bound_keyspace_id=keyspace.id))


_HELD: Final = {"expires_in_seconds": 600}
_PLACEHOLDER: Final = "_01JD0000000000000000000000"
_KIND_OF: Final = {
    "ks": "keyspace_id",
    "org": "organization_id",
    "prj": "project_id",
    "plan": "plan_id",
    "key": "key_id",
}
_BODIES: Final[dict[tuple[str, str], Any]] = {
    ("POST", "/v1/keyspaces"): {"name": "gateway", "preset": "default", "prefix": "other_live_"},
    ("POST", "/v1/verify/batch"): {"items": [{"secret": "acme_live_..."}]},
    ("POST", "/v1/verify"): {"secret": "acme_live_...", "keyspace_id": f"ks{_PLACEHOLDER}"},
    ("POST", "/v1/explain"): {"key_id": f"key{_PLACEHOLDER}", "cost_micros": 5},
    ("POST", "/v1/charges"): {"key_id": f"key{_PLACEHOLDER}", "request_id": "r-3", "amount_micros": 5},
    ("POST", "/v1/charges/batch"): {
        "items": [{"key_id": f"key{_PLACEHOLDER}", "request_id": "r-4", "amount_micros": 5}]
    },
    ("POST", "/v1/reservations/{reservation_id}/capture"): {"request_id": "r-5", "amount_micros": 9},
    ("POST", "/v1/edges/connect"): {"incarnation": "0f" * 16},
    ("POST", "/v1/organizations/{organization_id}/wallet/credits"): {"amount_micros": 5, "reference": "i-1"},
}
"""Where an operation's own example would not do."""
_OTHER_IDS: Final = {
    ("POST", "/v1/organizations/{organization_id}/resume"): {"organization_id": "suspended_organization_id"},
    ("POST", "/v1/keys/{key_id}/enable"): {"key_id": "disabled_key_id"},
    ("POST", "/v1/keyspaces/{keyspace_id}/archive"): {"keyspace_id": "unused_keyspace_id"},
}
"""Where an operation needs another one than most, to have something to do."""


async def ask_well(api: Management, things: Things, one: Operation, **headers: str) -> Reply:
    """Ask an operation something that it grants, with these headers beside."""
    ids = things.ids | {
        name: things.ids[other] for name, other in _OTHER_IDS.get((one.method, one.path), {}).items()
    }
    path = one.path.format(**ids)
    body = _about(things, _BODIES.get((one.method, one.path), one.example))
    sent = b"" if body is None or one.method == "GET" else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if one.proxied:
        shown = {"x-keyledger-proxy-key": things.proxy_key, "authorization": f"Bearer {things.secret}"}
        named = shown | named
        return await call(api.app, one.method, path, headers=named)
    if one.tag == "Self":
        named.setdefault("authorization", f"Bearer {things.secret}")
        return await call(api.app, one.method, path, headers=named, body=sent)
    return await api.ask(one.method, path, sent, **named)


def _about(things: Things, body: Any) -> Any:
    """The same about things that there are."""
    if isinstance(body, dict):
        return {name: _about(things, value) for name, value in body.items()}
    if isinstance(body, list):
        return [_about(things, value) for value in body]
    if body == "acme_live_...":
        return things.secret
    if isinstance(body, str) and body.endswith(_PLACEHOLDER):
        return things.ids[_KIND_OF[body.removesuffix(_PLACEHOLDER)]]
    return body
