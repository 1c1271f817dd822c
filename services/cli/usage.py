"""Usage of a key or an organization: the options to ask for it, and the table that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import click

from services.cli.amounts import clock_time, money, time_of
from services.cli.http import Document
from services.cli.session import Session, read_with

_DIMENSIONS: Final = ("model", "project_id", "provider", "tenant_org_id", "tenant_user_id", "key_id")


def usage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the time, the steps and the dimension."""
    for option in reversed(
        (
            click.option(
                "--from", "from", type=read_with(time_of), help="From this time on: a time, or -7d."
            ),
            click.option("--to", type=read_with(time_of), help="Until this time."),
            click.option("--bucket", type=click.Choice(["hour", "day", "month"]), help="day if not given."),
            click.option("--by", type=click.Choice(["model", "project", "provider", "tenant", "key"])),
        )
    ):
        function = option(function)
    return function


def read_usage(session: Session, path: str, query: dict[str, str | None]) -> Document:
    """Ask for usage."""
    return session.ledger.get(path, **query)


def usage_table(session: Session, found: Document) -> None:
    """Usage, for people."""
    rows = [
        (
            clock_time(one["start"]),
            " ".join(str(one[name] or "-") for name in _DIMENSIONS if name in one) or "-",
            f"{one['requests']:,}",
            money(one["charged_micros"]),
            money(one["refunded_micros"]) if one["refunded_micros"] else "-",
        )
        for one in found["items"]
    ]
    columns = ("from (UTC)", found.get("by") or "-", "+requests", "+charged", "+refunded")
    session.table(columns, rows, empty="No charges in that time.")
    denied = Counter[str]()
    for one in found.get("denials", []):
        denied[one["code"]] += one["denials"]
    if denied:
        session.say(
            "Refused: " + ", ".join(f"{code} {count:,} times" for code, count in denied.items()) + "."
        )
    if verified := sum(one["verifications"] for one in found.get("verifications", [])):
        session.say(f"Verified without a cost: {verified:,} times.")
