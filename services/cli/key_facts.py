"""A key, and the fence of a change to it, for people."""

from __future__ import annotations

from services.cli.amounts import clock_time
from services.cli.http import Document
from services.cli.words import quota_text, rate_limit_text, scopes_text, words


def facts_of(key: Document) -> list[tuple[str, str]]:
    """A key, for people."""
    return [
        ("key", f"{key['name']} ({key['id']})"),
        ("status", key["status"]),
        ("secret", f"{key['hint']}, generation {key['generation']}"),
        ("organization", str(key.get("organization_id") or "the platform")),
        ("keyspace", key["keyspace_id"]),
        ("kind", "" if key.get("kind") == "solo" else str(key.get("kind"))),
        ("owner", str(key.get("owner_id") or "-")),
        ("environment", str(key.get("environment") or "-")),
        ("plan", str(key.get("plan_id") or "-")),
        ("scopes", scopes_text(key.get("scopes", {}))),
        ("quotas", "; ".join(quota_text(one) for one in key.get("quotas", []))),
        ("rate limits", "; ".join(rate_limit_text(one) for one in key.get("rate_limits", []))),
        ("allowed from", ", ".join(key.get("allowed_ips", []))),
        ("tags", ", ".join(key.get("tags", []))),
        ("metadata", words(key.get("metadata") or "-")),
        ("expires", clock_time(key.get("expires_at"))),
        ("created", f"{clock_time(key['created_at'])} by {key['created_by']}"),
        ("rotated", clock_time(key.get("rotated_at"))),
        ("last used", clock_time(key.get("last_used_at"))),
        ("revoked", clock_time(key.get("revoked_at"))),
        ("version", str(key["version"])),
    ]


def fence_facts(answer: Document) -> list[tuple[str, str]]:
    """A fence, for people: whether the change has taken effect everywhere."""
    fence = answer.get("fence")
    if not isinstance(fence, dict):
        return []
    if not fence["held"]:
        return [("fence", f"not yet held; ask again: keyledger fence {fence['position']}")]
    edges = f"{fence['edges']} edge{'' if fence['edges'] == 1 else 's'}"
    heard = f"{fence['acknowledged']} acknowledged, {fence['expired']} timed out"
    return [("fence", f"held after {fence['waited_ms']:.0f} ms: {edges} ({heard})")]


def row_of(key: Document) -> tuple[str, ...]:
    """A key, as a row of a table."""
    return (
        key["id"],
        key["name"],
        key["hint"],
        key["status"],
        str(key.get("organization_id") or "(platform)"),
        clock_time(key.get("last_used_at")),
    )
