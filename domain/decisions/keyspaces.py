"""Decisions about keyspaces and plans."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from domain.commands import UNSET, ArchiveKeyspace, ChangeKeyspace, ChangePlan, DefineKeyspace, DefinePlan
from domain.decisions.access import (
    expect_version,
    find_keyspace,
    find_plan,
    platform_only,
    require,
)
from domain.desk import Desk
from domain.errors import (
    BuiltinError,
    InvalidError,
    KeyspaceArchivedError,
    KeyspaceInUseError,
    PrefixOverlapError,
)
from domain.keyspaces import DIMENSIONS, MINIMUM_BITS, PRESETS, Keyspace, prefixes_overlap
from domain.money import parse_multiplier
from domain.organizations import Plan
from keyledger_language import STATUS_OF_CODE, AcceptedFormat, SecretFormat
from keyledger_language import events as e

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_PLACE = r"header:[A-Za-z0-9-]{1,64}|query:[A-Za-z0-9_-]{1,64}"
_LOCATION = re.compile(rf"header:Authorization:[A-Za-z]{{1,32}}|{_PLACE}")
_TENANT_LOCATION = re.compile(_PLACE)
_MAPPABLE_STATUS = range(400, 600)
_MAX_SECRET_LENGTH = 256
_MAX_ACCEPTED_LENGTH = 512


def define_keyspace(desk: Desk, command: DefineKeyspace) -> Keyspace:
    """Make a keyspace, from a preset or from scratch."""
    require(desk, "keyspaces:write")
    platform_only(desk, "Making a keyspace")
    fields = _fields_of(command)
    _check_keyspace(fields)
    _check_overlap(desk, fields["prefix"])
    keyspace_id = desk.new_id("ks")
    desk.record(
        e.KeyspaceDefined(
            at=desk.now,
            actor=desk.asking.actor,
            private=desk.private(),
            keyspace_id=keyspace_id,
            name=command.name,
            preset=command.preset,
            **fields,
        )
    )
    return desk.draft.keyspaces[keyspace_id]


def _fields_of(command: DefineKeyspace) -> dict[str, Any]:
    if command.preset is not None and command.preset not in PRESETS:
        raise InvalidError("preset", f"one of {', '.join(PRESETS)}")
    fields: dict[str, Any] = {
        "prefix": "kl_live_",
        "secret_format": SecretFormat(alphabet="base62", length=30, checksum="crc32"),
        "accepted_formats": command.accepted_formats,
        "credential_locations": ("header:Authorization:Bearer", "header:X-API-Key"),
        "tenant_locations": {},
        "denial_status": {},
        "require_balance": False,
        "required_dimensions": (),
    }
    fields |= PRESETS[command.preset or "default"]
    for name in fields:
        given = getattr(command, name)
        if given is not None:
            fields[name] = given
    return fields


def change_keyspace(desk: Desk, command: ChangeKeyspace) -> Keyspace:
    """Set fields of a keyspace; its prefix and format never change."""
    require(desk, "keyspaces:write")
    platform_only(desk, "Changing a keyspace")
    keyspace = _changeable(desk, command.keyspace_id, command.expected_version)
    if keyspace.archived:
        raise KeyspaceArchivedError(keyspace.id)
    changes = _changes(command, keyspace, skip=("keyspace_id", "expected_version"))
    if not changes:
        return keyspace
    _check_keyspace({name: getattr(keyspace, name) for name in _CHECKED} | changes)
    desk.record(
        e.KeyspaceChanged(
            at=desk.now,
            actor=desk.asking.actor,
            private=desk.private(),
            keyspace_id=keyspace.id,
            changes=msgspec.to_builtins(changes),
            before=msgspec.to_builtins({name: getattr(keyspace, name) for name in changes}),
        )
    )
    return desk.draft.keyspaces[keyspace.id]


def archive_keyspace(desk: Desk, command: ArchiveKeyspace) -> Keyspace:
    """Archive a keyspace that never had a key; doing it twice is harmless."""
    require(desk, "keyspaces:write")
    platform_only(desk, "Archiving a keyspace")
    keyspace = _changeable(desk, command.keyspace_id, command.expected_version)
    if keyspace.archived:
        return keyspace
    if keyspace.used:
        raise KeyspaceInUseError(keyspace.id)
    desk.record(
        e.KeyspaceArchived(
            at=desk.now,
            actor=desk.asking.actor,
            private=desk.private(reason=command.reason),
            keyspace_id=keyspace.id,
        )
    )
    return desk.draft.keyspaces[keyspace.id]


def _changeable(desk: Desk, keyspace_id: str, expected_version: int | None) -> Keyspace:
    keyspace = find_keyspace(desk, keyspace_id)
    if keyspace.builtin:
        msg = "The built-in keyspace of root keys cannot be changed."
        raise BuiltinError(msg)
    expect_version(f"Keyspace {keyspace.id}", keyspace.version, expected_version)
    return keyspace


def _changes(command: Any, subject: Any, skip: tuple[str, ...]) -> dict[str, Any]:
    """The fields that a command sets to other values than the subject has."""
    given = {name: getattr(command, name) for name in command.__struct_fields__}
    return {
        name: value
        for name, value in given.items()
        if name not in skip and value is not UNSET and value != getattr(subject, name)
    }


_CHECKED = (
    "prefix",
    "secret_format",
    "accepted_formats",
    "credential_locations",
    "tenant_locations",
    "denial_status",
    "required_dimensions",
)


def _check_keyspace(fields: dict[str, Any]) -> None:
    if _PREFIX.fullmatch(fields["prefix"]) is None:
        raise InvalidError("prefix", "1 to 32 of A-Z a-z 0-9 _ -, beginning with a letter or digit")
    _check_format(fields["secret_format"])
    for index, accepted in enumerate(fields["accepted_formats"]):
        _check_accepted(f"accepted_formats[{index}]", accepted)
    _check_locations(fields["credential_locations"])
    _check_tenant_locations(fields["tenant_locations"])
    _check_denials(fields["denial_status"])
    for dimension in fields["required_dimensions"]:
        if dimension not in DIMENSIONS:
            raise InvalidError("required_dimensions", f"each one of {', '.join(DIMENSIONS)}")


def _check_format(secret_format: SecretFormat) -> None:
    if secret_format.bits < MINIMUM_BITS:
        raise InvalidError(
            "secret_format.length", f"a secret needs at least {MINIMUM_BITS} bits of randomness"
        )
    if secret_format.length > _MAX_SECRET_LENGTH:
        raise InvalidError("secret_format.length", f"at most {_MAX_SECRET_LENGTH}")


def _check_accepted(field: str, accepted: AcceptedFormat) -> None:
    shortest = SecretFormat(alphabet=accepted.alphabet, length=max(0, accepted.min_length))
    if shortest.bits < MINIMUM_BITS:
        raise InvalidError(
            f"{field}.min_length", f"a secret needs at least {MINIMUM_BITS} bits of randomness"
        )
    if not accepted.min_length <= accepted.max_length <= _MAX_ACCEPTED_LENGTH:
        raise InvalidError(f"{field}.max_length", f"from min_length to {_MAX_ACCEPTED_LENGTH}")


def _check_locations(locations: tuple[str, ...]) -> None:
    if not locations:
        raise InvalidError("credential_locations", "at least one place for the secret")
    for location in locations:
        if _LOCATION.fullmatch(location) is None:
            raise InvalidError(
                "credential_locations",
                "each as header:<name>, header:Authorization:<scheme> or query:<name>",
            )


def _check_tenant_locations(locations: dict[str, str]) -> None:
    for name, location in locations.items():
        if name not in ("org_id", "user_id"):
            raise InvalidError("tenant_locations", "the names are org_id and user_id")
        if _TENANT_LOCATION.fullmatch(location) is None:
            raise InvalidError(f"tenant_locations.{name}", "header:<name> or query:<name>")


def _check_denials(denials: dict[str, int]) -> None:
    for code, status in denials.items():
        if code not in STATUS_OF_CODE or code == "valid":
            raise InvalidError(f"denial_status.{code}", "not the code of a denial")
        if status not in _MAPPABLE_STATUS:
            raise InvalidError(f"denial_status.{code}", "a status from 400 to 599")


def _check_overlap(desk: Desk, prefix: str) -> None:
    for keyspace in desk.draft.keyspaces.rows().values():
        if not keyspace.archived and prefixes_overlap(keyspace.prefix, prefix):
            msg = f"prefix {prefix} overlaps with {keyspace.prefix} of keyspace {keyspace.id}."
            raise PrefixOverlapError(msg, field="prefix")


def define_plan(desk: Desk, command: DefinePlan) -> Plan:
    """Make a plan."""
    require(desk, "plans:write")
    platform_only(desk, "Making a plan")
    _check_plan(command.models, command.price_multiplier)
    plan_id = desk.new_id("plan")
    desk.record(
        e.PlanDefined(
            at=desk.now,
            actor=desk.asking.actor,
            private=desk.private(),
            plan_id=plan_id,
            name=command.name,
            models=command.models,
            price_multiplier=command.price_multiplier,
        )
    )
    return desk.draft.plans[plan_id]


def change_plan(desk: Desk, command: ChangePlan) -> Plan:
    """Set fields of a plan; from here on charges are priced by the new values."""
    require(desk, "plans:write")
    platform_only(desk, "Changing a plan")
    plan = find_plan(desk, command.plan_id)
    expect_version(f"Plan {plan.id}", plan.version, command.expected_version)
    changes = _changes(command, plan, skip=("plan_id", "expected_version"))
    if not changes:
        return plan
    _check_plan(
        changes.get("models", plan.models),
        changes.get("price_multiplier", plan.price_multiplier),
    )
    desk.record(
        e.PlanChanged(
            at=desk.now,
            actor=desk.asking.actor,
            private=desk.private(),
            plan_id=plan.id,
            changes=msgspec.to_builtins(changes),
            before=msgspec.to_builtins({name: getattr(plan, name) for name in changes}),
        )
    )
    return desk.draft.plans[plan.id]


def _check_plan(models: tuple[str, ...] | str, multiplier: str) -> None:
    if models != "*" and not models:
        raise InvalidError("models", 'a list of models, or "*" for all')
    try:
        parse_multiplier(multiplier)
    except ValueError as error:
        raise InvalidError("price_multiplier", str(error)) from None
