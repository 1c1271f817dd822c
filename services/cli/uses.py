"""A use of a key as options: what it needs, where it comes from, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from services.cli.http import Document
from services.cli.session import given

KEYSPACE_HELP = "The keyspace of the secret; needed only if there are several."


def use_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for what a use is checked against."""
    for option in reversed(
        (
            click.option("--keyspace", help=KEYSPACE_HELP),
            click.option(
                "--permission", "permissions", multiple=True, help="A permission that the use needs."
            ),
            click.option("--project", "project_id", help="The project, by id."),
            click.option("--model", help="The model."),
            click.option("--provider", help="Who serves the use; for rate limits."),
            click.option("--tenant-org", help="The tenant's organization."),
            click.option("--tenant-user", help="The tenant's user."),
            click.option("--ip", help="The address that the use comes from."),
        )
    ):
        function = option(function)
    return function


def use_of(use: dict[str, Any]) -> Document:
    """The use as the API takes it, without the keyspace."""
    tenant = given(org_id=use["tenant_org"], user_id=use["tenant_user"])
    rest = {
        name: value for name, value in use.items() if name not in {"keyspace", "tenant_org", "tenant_user"}
    }
    return given(tenant=tenant, **rest | {"permissions": [*use["permissions"]]})
