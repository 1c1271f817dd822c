"""Organizations and their projects."""

import pytest

from domain import commands as c
from domain.errors import InvalidError, NotFoundError, VersionConflictError
from keyledger_language import Use
from keyledger_language import events as e
from tests.domain.given import Shop


def test_none_of_the_keys_of_a_suspended_organization_works_until_it_is_resumed() -> None:
    shop = Shop()
    for _ in range(2):
        shop.ask(c.SuspendOrganization(organization_id=shop.customer.id))

    assert shop.charge(1).code == "organization_suspended"

    for _ in range(2):
        shop.ask(c.ResumeOrganization(organization_id=shop.customer.id))

    assert shop.charge(1).code == "valid"
    assert (len(shop.all(e.OrganizationSuspended)), len(shop.all(e.OrganizationResumed))) == (1, 1)


def test_a_use_that_names_an_archived_project_is_refused() -> None:
    shop = Shop()
    project = shop.project(shop.customer.id)
    inside = Use(project_id=project.id)

    assert shop.charge(1, use=inside).code == "valid"

    for _ in range(2):
        shop.ask(c.ArchiveProject(organization_id=shop.customer.id, project_id=project.id))

    assert shop.charge(1, use=inside).code == "project_denied"
    assert len(shop.all(e.ProjectArchived)) == 1


def test_another_organizations_project_is_none() -> None:
    shop = Shop()
    foreign = shop.project(shop.organization().id)

    assert shop.charge(1, use=Use(project_id=foreign.id)).code == "project_denied"
    with pytest.raises(NotFoundError):
        shop.ask(c.ChangeProject(organization_id=shop.customer.id, project_id=foreign.id, name="x"))


def test_a_project_opened_in_the_same_group_can_be_used_in_it() -> None:
    shop = Shop()
    opened = c.OpenProject(organization_id=shop.customer.id, name="p")
    project, _ = shop.together(opened, c.OpenProject(organization_id=shop.customer.id, name="q"))

    assert shop.charge(1, use=Use(project_id=project.id)).code == "valid"


def test_names_and_metadata_stand_in_the_encrypted_part() -> None:
    shop = Shop()
    shop.ask(c.ChangeOrganization(organization_id=shop.customer.id, name="Emca", metadata={"tier": 1}))
    changed = shop.last(e.OrganizationChanged).private

    assert changed is not None
    assert changed.before == {"name": "Acme", "metadata": {}}
    assert changed.after == {"name": "Emca", "metadata": {"tier": 1}}


def test_a_number_that_no_event_can_hold_is_refused_by_its_field() -> None:
    shop = Shop()

    with pytest.raises(InvalidError) as refused:
        shop.ask(c.ChangeOrganization(organization_id=shop.customer.id, metadata={"n": 2**64}))
    assert refused.value.field == "metadata"
    with pytest.raises(InvalidError):
        shop.charge(1, metadata={"n": 2**64})
    with pytest.raises(InvalidError):
        shop.change(metadata={"n": 2**64})


def test_who_decided_on_an_older_version_is_told() -> None:
    shop = Shop()
    organization, project = shop.customer.id, shop.project(shop.customer.id).id
    shop.ask(c.ChangeOrganization(organization_id=organization, name="x", expected_version=1))
    shop.ask(c.ChangeProject(organization_id=organization, project_id=project, name="x", expected_version=1))

    with pytest.raises(VersionConflictError):
        shop.ask(c.ChangeOrganization(organization_id=organization, name="y", expected_version=1))
    with pytest.raises(VersionConflictError):
        shop.ask(
            c.ChangeProject(organization_id=organization, project_id=project, name="y", expected_version=1)
        )
