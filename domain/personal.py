"""Personal fields: which they are, and whose data key encrypts them in the ledger's storage.

They are the fields of an event's `Private`. A subject's current state has some of them again, folded
from its events: those with the same names. No other definition of personal fields exists.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import FieldInfo, replace

from domain.keys import Key
from domain.organizations import Organization, Project
from keyledger_language.events import Private

S = TypeVar("S", bound=msgspec.Struct)

PLATFORM: Final = "platform"
"""The subject of the data key for everything that belongs to no organization."""

SUBJECTS: Final[tuple[type[msgspec.Struct], ...]] = (Organization, Project, Key)
"""The states that are folded from events with personal fields. The names of plans and keyspaces are not
personal: they are the platform's own settings, and not encrypted in their events either."""


def key_subject(organization_id: str | None) -> str:
    """The subject whose data key encrypts the personal fields of this organization, or of none."""
    return organization_id or PLATFORM


def _nothing_in(field: FieldInfo) -> Any:  # of whatever type the field has
    """The value of a personal field in a subject without personal fields."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return "" if field.default_factory is msgspec.NODEFAULT else field.default_factory()


_WITHOUT: Final[dict[type[msgspec.Struct], dict[str, Any]]] = {
    subject: {
        field.name: _nothing_in(field)
        for field in msgspec.structs.fields(subject)
        if field.name in Private.__struct_fields__
    }
    for subject in SUBJECTS
}


def taken_apart(row: S) -> tuple[S, Private | None]:
    """A subject without its personal fields, and these fields; None if it has none."""
    without = _WITHOUT[type(row)]
    personal = {name: value for name, nothing in without.items() if (value := getattr(row, name)) != nothing}
    if not personal:
        return row, None
    return replace(row, **without), Private(**personal)


def put_together(row: S, private: Private) -> S:
    """The subject as it was before it was taken apart."""
    found = {name: value for name in _WITHOUT[type(row)] if (value := getattr(private, name)) is not None}
    return replace(row, **found)
