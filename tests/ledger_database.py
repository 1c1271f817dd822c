"""Fixture: a migrated database of one's own, copied from a template that is made once."""

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from infra.embedded import EmbeddedPostgres
from infra.postgres.migrate import migrate
from tests.servers import fresh_database


@pytest.fixture(scope="session")
def ledger_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    with fresh_database(postgres_server) as conninfo:
        migrate(conninfo)
        yield str(conninfo_to_dict(conninfo)["dbname"])


@pytest.fixture
def ledger_database(postgres_server: EmbeddedPostgres, ledger_template: str) -> Iterator[str]:
    """The conninfo of a migrated, empty ledger, as its owner."""
    with fresh_database(postgres_server, template=ledger_template) as conninfo:
        migrate(conninfo)  # a copy has the template's tables, not its grants
        yield conninfo
