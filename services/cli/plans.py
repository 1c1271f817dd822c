"""`keyledger plans`: what the platform gives to keys."""

from __future__ import annotations

import click

from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, given, talking


@click.group
def plans() -> None:
    """Plans: the models that a key may call, and what its uses cost."""


@plans.command(
    "create",
    **examples(
        "keyledger plans create pro --model gpt-5 --model claude --multiplier 1.25",
        "keyledger plans create everything --multiplier 1",
    ),
)
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model that its keys may call; all if not given.")
@click.option("--multiplier", default="1", show_default=True, help="Each price is multiplied by it.")
@talking
def create(session: Session, name: str, models: tuple[str, ...], multiplier: str) -> None:
    """Define a plan."""
    made = session.ledger.post(
        "/v1/plans", {"name": name, "models": [*models] or "*", "price_multiplier": multiplier}
    )
    session.show(made, lambda: session.facts(_facts(made)))


@plans.command("list", **examples("keyledger plans list"))
@talking
def list_plans(session: Session) -> None:
    """List the plans."""
    items = list(session.ledger.pages("/v1/plans", limit=1_000))
    rows = [(one["id"], one["name"], one["price_multiplier"], _models(one)) for one in items]
    session.show(
        {"items": items},
        lambda: session.table(("id", "name", "+multiplier", "models"), rows, empty="No plans."),
    )


@plans.command("show", **examples("keyledger plans show pro"))
@click.argument("plan")
@talking
def show(session: Session, plan: str) -> None:
    """Show one plan, by name or id."""
    found = session.ledger.get(f"/v1/plans/{session.plan(plan)}")
    session.show(found, lambda: session.facts(_facts(found)))


@plans.command("update", **examples("keyledger plans update pro --multiplier 1.5"))
@click.argument("plan")
@click.option("--name", help="A new name.")
@click.option("--model", "models", multiple=True, help="Replaces all models; '*' for all.")
@click.option("--multiplier", help="Each price is multiplied by it, from now on.")
@talking
def update(
    session: Session, plan: str, name: str | None, models: tuple[str, ...], multiplier: str | None
) -> None:
    """Change a plan. Options that are not given change nothing. A charge keeps the price it was made at."""
    chosen: str | list[str] | None = "*" if models == ("*",) else [*models] or None
    changed = session.ledger.patch(
        f"/v1/plans/{session.plan(plan)}", given(name=name, models=chosen, price_multiplier=multiplier)
    )
    session.show(changed, lambda: session.facts(_facts(changed)))


def _models(one: Document) -> str:
    return "all" if one["models"] == "*" else ", ".join(one["models"])


def _facts(one: Document) -> list[tuple[str, str]]:
    return [
        ("plan", f"{one['name']} ({one['id']})"),
        ("multiplier", one["price_multiplier"]),
        ("models", _models(one)),
    ]
