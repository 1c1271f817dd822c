"""What tests of clients share: one running ledger."""

from tests.e2e.running import running

__all__ = ["running"]
