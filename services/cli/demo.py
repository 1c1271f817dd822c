"""`keyledger demo`: a simulated day at five gateways."""

from __future__ import annotations

import click

from services.cli.faults import REFUSED
from services.cli.main import examples
from services.cli.session import Session, local


@click.command("demo", **examples("keyledger demo", "keyledger demo --json"))
@local
def demo(session: Session) -> int:
    """Simulate a day at five gateways, over real HTTP, and report what happens.

    Starts a ledger of its own in a temporary folder, and leaves nothing behind. Exit code 1 if anything
    is not as promised.
    """
    from services.demo.day import live_through  # noqa: PLC0415 - a quick start

    story = live_through(tell=None if session.as_json else click.echo)
    session.show(story.document(), lambda: None)
    return REFUSED if story.failures else 0
