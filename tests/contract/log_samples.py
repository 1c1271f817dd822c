"""Events for tests of the log alone: two types, one with personal fields."""

from typing import Any

import msgspec


class Personal(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str | None = None
    metadata: dict[str, Any] | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    at: int
    organization_id: str | None = None
    private: Personal | None = None


class Renamed(Sample, frozen=True, kw_only=True, tag="sample.renamed"):
    """Private: name."""


class Charged(Sample, frozen=True, kw_only=True, tag="sample.charged"):
    amount_micros: int
    fingerprint: bytes = b""


SampleEvent = Renamed | Charged
