"""Scopes: nothing widens silently."""

import pytest

from domain import commands as c
from domain.errors import EmptyScopeError, InvalidError
from keyledger_language import events as e
from tests.domain.given import Shop

DIMENSIONS = ("permissions", "projects", "models", "tenants")


def edited(shop: Shop, **scopes: object) -> object:
    new = c.NewScopes(**scopes)  # type: ignore[arg-type]
    return shop.ask(c.EditScopes(key_id=shop.shopper.id, scopes=new)).scopes


def test_at_creation_an_empty_list_of_models_means_everything() -> None:
    assert Shop(scopes=c.NewScopes(models=())).shopper.scopes.models == "*"


@pytest.mark.parametrize("dimension", ["permissions", "projects", "tenants"])
def test_at_creation_any_other_empty_list_is_refused(dimension: str) -> None:
    with pytest.raises(EmptyScopeError) as refused:
        Shop(scopes=c.NewScopes(**{dimension: ()}))
    assert '"*"' in refused.value.message
    assert refused.value.field == f"scopes.{dimension}"


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_in_an_edit_every_empty_list_is_refused(dimension: str) -> None:
    shop = Shop()

    with pytest.raises(EmptyScopeError):
        edited(shop, **{dimension: ()})
    assert shop.all(e.ScopesEdited) == []


def test_a_dimension_that_is_left_out_stays_as_it_was() -> None:
    shop = Shop(scopes=c.NewScopes(models=("opus",), permissions=("chat",)))
    edited(shop, permissions=("chat", "embed"))
    scopes = shop.state.keys[shop.shopper.id].scopes

    assert (scopes.models, scopes.permissions, scopes.projects) == (("opus",), ("chat", "embed"), "*")


def test_a_star_widens_since_it_says_so() -> None:
    shop = Shop(scopes=c.NewScopes(models=("opus",)))
    edited(shop, models="*")

    assert shop.state.keys[shop.shopper.id].scopes.models == "*"


def test_an_edit_tells_what_was_before_and_one_that_changes_nothing_tells_nothing() -> None:
    shop = Shop(scopes=c.NewScopes(models=("opus",)))
    edited(shop, models=("haiku", "haiku"))
    edited(shop, models=("haiku",))

    assert [(one.before.models, one.scopes.models) for one in shop.all(e.ScopesEdited)] == [
        (("opus",), ("haiku",))
    ]


def test_the_secret_stays() -> None:
    shop = Shop()
    edited(shop, models=("haiku",))

    assert shop.state.keys[shop.shopper.id].generation == 1


def test_a_project_of_another_organization_is_none() -> None:
    shop = Shop()
    foreign = shop.project(shop.organization().id)

    with pytest.raises(InvalidError):
        edited(shop, projects=(foreign.id,))


@pytest.mark.parametrize("entries", [("",), ("x" * 201,), tuple(f"m{n}" for n in range(1_001))])
def test_entries_are_names_and_not_too_many(entries: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError):
        edited(Shop(), models=entries)
