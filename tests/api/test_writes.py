"""Once per Idempotency-Key, on the version that was read, visible or fenced when it is answered."""

import asyncio
from typing import Any

import pytest

from keyledger_language.instants import DAY
from tests.api.world import Management, managed


async def new_key(api: Management) -> dict[str, Any]:
    keyspace, organization = await api.make_keyspace(), await api.make_organization()
    return {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "x"}


# -- Idempotency-Key


async def test_a_replay_gives_the_first_answer_without_its_secret(api: Management) -> None:
    body = await new_key(api)
    first = await api.post("/v1/keys", body, idempotency_key="abc")
    again = await api.post("/v1/keys", dict(reversed(body.items())), idempotency_key="abc")

    assert first.json["secret"] is not None
    assert "idempotent-replayed" not in first.headers
    assert again.status == first.status == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json["key"]["id"] == first.json["key"]["id"]
    assert again.json["secret"] is None
    assert "already" in again.json["detail"] or "was shown" in again.json["detail"]
    assert again.headers["etag"] == '"1"'


async def test_a_replayed_creation_has_no_fence_of_its_neighbours(api: Management) -> None:
    body = await new_key(api)
    stopped = (await api.post("/v1/keys", body)).json["key"]["id"]
    await api.post(f"/v1/keys/{stopped}/revoke", b"")
    first = await api.post("/v1/keys", body, idempotency_key="near")
    again = await api.post("/v1/keys", body, idempotency_key="near")

    assert again.headers["idempotent-replayed"] == "true"
    assert "fence" not in first.json
    assert "fence" not in again.json


async def test_a_replayed_taking_away_has_the_first_ones_fence(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}/scopes"
    first = await api.patch(path, {"models": ["a"]}, idempotency_key="narrow")
    await api.patch(path, {"models": ["b"]})
    again = await api.patch(path, {"models": ["a"]}, idempotency_key="narrow")

    assert again.headers["idempotent-replayed"] == "true"
    assert again.json["fence"]["position"] == first.json["fence"]["position"]


async def test_a_replayed_rotation_shows_no_secret(api: Management) -> None:
    key = (await api.create())["key"]
    path = f"/v1/keys/{key['id']}/rotate"
    first = await api.post(path, {"reason": "x"}, idempotency_key="rot")
    again = await api.post(path, {"reason": "x"}, idempotency_key="rot")

    assert first.json["secret"] is not None
    assert again.json["secret"] is None
    assert again.json["fence"]["held"] is True
    assert again.json["key"]["generation"] == 2


async def test_another_body_under_the_same_key_is_a_conflict(api: Management) -> None:
    body = await new_key(api)
    await api.post("/v1/keys", body, idempotency_key="abc")
    other = await api.post("/v1/keys", {**body, "name": "y"}, idempotency_key="abc")
    elsewhere = await api.post("/v1/plans", {"name": "pro", "models": "*"}, idempotency_key="abc")

    for answer in (other, elsewhere):
        assert (answer.status, answer.code) == (409, "idempotency_conflict")


async def test_an_idempotency_key_belongs_to_one_root_key(api: Management) -> None:
    body = await new_key(api)
    mine = await api.post("/v1/keys", body, idempotency_key="abc")
    theirs = await api.post("/v1/keys", body, idempotency_key="abc", as_=await api.make_root("keys:write"))

    assert theirs.json["key"]["id"] != mine.json["key"]["id"]


async def test_an_idempotency_key_is_kept_for_a_day(api: Management) -> None:
    body = await new_key(api)
    first = await api.post("/v1/keys", body, idempotency_key="abc")
    api.clock.advance(DAY - 1)
    kept = await api.post("/v1/keys", body, idempotency_key="abc")
    api.clock.advance(1)
    forgotten = await api.post("/v1/keys", body, idempotency_key="abc")

    assert kept.json["key"]["id"] == first.json["key"]["id"]
    assert forgotten.json["key"]["id"] != first.json["key"]["id"]


async def test_two_at_once_are_one(api: Management) -> None:
    body = await new_key(api)
    answers = await asyncio.gather(*(api.post("/v1/keys", body, idempotency_key="abc") for _ in range(8)))

    assert len({answer.json["key"]["id"] for answer in answers}) == 1
    assert sum(answer.json["secret"] is not None for answer in answers) == 1


async def test_a_refused_write_may_be_tried_again(api: Management) -> None:
    body = await new_key(api)
    refused = await api.post("/v1/keys", {**body, "plan_id": "plan_x"}, idempotency_key="abc")
    made = await api.post("/v1/keys", body, idempotency_key="abc")

    assert refused.status == 404
    assert made.status == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "ü"])
async def test_an_absurd_idempotency_key_is_refused(api: Management, key: str) -> None:
    answer = await api.post("/v1/plans", {"name": "pro", "models": "*"}, idempotency_key=key)

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "Idempotency-Key")


async def test_the_longest_idempotency_key_is_taken(api: Management) -> None:
    answer = await api.post("/v1/plans", {"name": "pro", "models": "*"}, idempotency_key="x" * 255)

    assert answer.status == 201


async def test_a_credit_counts_once_per_reference(api: Management) -> None:
    organization = await api.make_organization()
    path = f"/v1/organizations/{organization.id}/wallet/credits"
    first = await api.post(path, {"amount_micros": 700, "reference": "inv-1"})
    again = await api.post(path, {"amount_micros": 700, "reference": "inv-1"})
    other = await api.post(path, {"amount_micros": 701, "reference": "inv-1"})

    assert (first.status, again.status) == (201, 201)
    assert (first.json["replayed"], again.json["replayed"]) == (False, True)
    assert first.json["credit"] == again.json["credit"]
    assert api.balance(organization) == 700
    assert (other.status, other.code) == (409, "idempotency_conflict")


# -- If-Match


async def test_a_change_on_the_version_that_was_read_goes_through(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    etag = (await api.get(path)).headers["etag"]
    changed = await api.ask("PATCH", path, {"name": "b"}, if_match=etag)
    stale = await api.ask("PATCH", path, {"name": "c"}, if_match=etag)
    any_version = await api.ask("PATCH", path, {"name": "d"}, if_match="*")

    assert (changed.status, changed.headers["etag"]) == (200, '"2"')
    assert (stale.status, stale.code) == (412, "version_conflict")
    assert any_version.status == 200


@pytest.mark.parametrize(
    "method, tail",
    [("PATCH", ""), ("PATCH", "/scopes"), ("POST", "/rotate"), ("POST", "/disable"), ("POST", "/enable"),
     ("POST", "/revoke"), ("DELETE", "")],
)  # fmt: skip
async def test_every_change_of_a_key_takes_if_match(api: Management, method: str, tail: str) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    stale = await api.ask(method, path + tail, {}, if_match='"7"')
    fresh = await api.ask(method, path + tail, {}, if_match='W/"1"')

    assert (stale.status, stale.code) == (412, "version_conflict")
    assert fresh.status in {200, 201}


@pytest.mark.parametrize("given", ["1", '"x"', '"1", "2"', ""])
async def test_an_if_match_that_is_no_version_is_refused(api: Management, given: str) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    answer = await api.ask("PATCH", path, {"name": "b"}, if_match=given)

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "If-Match")


async def test_if_match_where_there_is_no_version_is_refused(api: Management) -> None:
    answer = await api.ask("POST", "/v1/plans", {"name": "pro", "models": "*"}, if_match='"1"')

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "If-Match")


# -- fences and positions


async def test_without_a_fence_the_answer_is_202_right_after_the_commit(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    for tail in ("/disable", "/revoke"):
        answer = await api.post(f"{path}{tail}?fence=false", b"")
        assert answer.status == 202
        assert set(answer.json["fence"]) == {
            "position", "held", "edges", "acknowledged", "expired", "waited_ms"
        }  # fmt: skip
    assert (await api.delete(f"{path}?fence=false")).status == 202


async def test_a_fence_that_waits_for_an_edge_is_answered_when_it_holds(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    fences = api.ledger.fences
    fences._quiet_until = fences._clock.boottime_ns() + 3_600_000_000_000
    asked = asyncio.create_task(api.post(f"{path}/revoke", b""))
    await asyncio.sleep(0.05)
    waiting = not asked.done()
    unfenced = await api.post(f"{path}/revoke?fence=false", b"")
    position = unfenced.json["fence"]["position"]
    fences._quiet_until = 0
    fences.advance()
    answer = await asked

    assert waiting
    assert (unfenced.status, unfenced.json["fence"]["held"]) == (202, False)
    assert (answer.status, answer.json["fence"]["held"]) == (200, True)
    assert answer.json["fence"]["position"] == position
    assert (await api.get(f"/v1/fences/{position}")).json["held"] is True


async def test_a_write_tells_its_position_and_waits_for_the_projections(api: Management) -> None:
    waited: list[int] = []

    async def wait(position: int, timeout: float = 2.0) -> bool:
        waited.append(position)
        return True

    api.ledger.wait_for_projections = wait  # type: ignore[method-assign]  # to see what is waited for
    made = await api.post("/v1/plans", {"name": "pro", "models": "*"})

    assert made.headers["x-keyledger-position"] == made.json["position"]
    assert [f"0-{position}" for position in waited] == [made.json["position"]]


@pytest.mark.parametrize("by_holder", [False, True])
async def test_a_take_away_waits_for_its_fence_and_then_for_the_projections(
    api: Management,
    by_holder: bool,  # noqa: FBT001  # a table's column
) -> None:
    made = await api.create()
    path = "/v1/self/revoke" if by_holder else f"/v1/keys/{made['key']['id']}/revoke"
    secret = made["secret"] if by_holder else api.root
    projected = asyncio.Event()
    waited: list[int] = []

    async def wait(position: int, timeout: float = 2.0) -> bool:
        waited.append(position)
        await projected.wait()
        return True

    api.ledger.wait_for_projections = wait  # type: ignore[method-assign]  # to see what is waited for
    fences = api.ledger.fences
    fences._quiet_until = fences._clock.boottime_ns() + 3_600_000_000_000
    asked = asyncio.create_task(api.post(path, b"", as_=secret))
    await asyncio.sleep(0.05)
    waited_for_while_the_fence_was_open = list(waited)
    fences._quiet_until = 0
    fences.advance()
    await asyncio.sleep(0.05)
    answered_before_it_was_projected = asked.done()
    projected.set()
    answer = await asked

    assert waited_for_while_the_fence_was_open == []
    assert not answered_before_it_was_projected
    assert (answer.status, answer.json["fence"]["held"]) == (200, True)
    assert [f"0-{position}" for position in waited] == [answer.json["position"]]


async def test_without_a_fence_a_take_away_waits_for_no_projections(api: Management) -> None:
    key = (await api.create())["key"]

    async def never(position: int, timeout: float = 2.0) -> bool:
        raise AssertionError

    api.ledger.wait_for_projections = never  # type: ignore[method-assign]  # it must not be asked
    answer = await api.post(f"/v1/keys/{key['id']}/revoke?fence=false", b"")

    assert answer.status == 202


async def test_a_get_waits_for_the_position_it_names(api: Management) -> None:
    head = api.ledger.books.head
    reached = await api.ask("GET", "/v1/plans", x_keyledger_position=f"0-{head}")

    async def never(position: int, timeout: float = 2.0) -> bool:
        return False

    api.ledger.wait_for_projections = never  # type: ignore[method-assign]  # projections that stand still
    behind = await api.ask("GET", "/v1/plans", x_keyledger_position=f"0-{head}")
    memory = await api.ask("GET", "/v1/organizations/x", x_keyledger_position=f"0-{head}")
    future = await api.ask("GET", "/v1/organizations/x", x_keyledger_position=f"0-{head + 1}")

    assert reached.status == 200
    assert (behind.status, behind.code, behind.headers["retry-after"]) == (503, "position_not_reached", "1")
    assert memory.status == 404, "what is read from memory is there"
    assert future.code == "position_not_reached"


@pytest.mark.parametrize("position", ["", "x", "1", "0-", "-1", "0-x", "1-1", "0--1", "0-" + "9" * 40, "0-٣"])
async def test_a_position_of_nobody_is_refused(api: Management, position: str) -> None:
    try:
        position.encode("latin-1")
    except UnicodeEncodeError:
        position = position.encode().decode("latin-1")
    answer = await api.ask("GET", "/v1/plans", x_keyledger_position=position)

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "X-Keyledger-Position")


# -- trace ids


async def test_a_sane_trace_id_comes_back(api: Management) -> None:
    answer = await api.ask("GET", "/v1/plans", x_request_id="trace-7")

    assert answer.headers["x-request-id"] == "trace-7"


@pytest.mark.parametrize("given", ["", "x" * 129, "a\tb", "ü", "kl_root_" + "a" * 36])
async def test_an_odd_trace_id_is_replaced(api: Management, given: str) -> None:
    answer = await api.ask("GET", "/v1/plans", x_request_id=given)

    assert answer.headers["x-request-id"] != given
    assert answer.headers["x-request-id"].startswith("req_")


# -- when the ledger cannot


async def test_without_postgresql_writes_are_refused_and_memory_is_read_on() -> None:
    async with managed(lease_ms=10_000) as api:
        key = (await api.create())["key"]
        api.storage.up = False
        refused = await api.post("/v1/plans", {"name": "pro", "models": "*"})
        async with asyncio.timeout(30):
            while api.ledger.reachable:
                await asyncio.sleep(0.01)
        read = await api.get(f"/v1/keys/{key['id']}")
        ready = await api.get("/readyz")
        api.storage.up = True

    assert (refused.status, refused.code) == (503, "dependency_unavailable")
    assert refused.json["dependency"] == "postgresql"
    assert refused.headers["retry-after"] == "1"
    assert read.status == 200
    assert ready.status == 503
    assert ready.json["waits_for"][0]["dependency"] == "postgresql"


async def test_a_process_that_is_not_the_owner_answers_no_management_request(api: Management) -> None:
    await api.stop()
    answer = await api.get("/v1/keys")

    assert answer.status == 503
    assert answer.code in {"not_owner", "dependency_unavailable"}
