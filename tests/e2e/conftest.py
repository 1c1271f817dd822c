"""What end-to-end tests share: one running ledger."""

from tests.e2e.running import running

__all__ = ["running"]
