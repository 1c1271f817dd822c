"""A proxied request is read as a use of a key, and a verdict is answered to the proxy."""

from __future__ import annotations

import msgspec
import pytest

from keyledger_edge import (
    NO_USE,
    AmbiguousCredentialsError,
    BadRequestError,
    KeyFacts,
    KeyspaceView,
    RateState,
    Scopes,
    SecretFormat,
    SecretShape,
    Tenant,
    Use,
    Verdict,
    answer_error,
    answer_verdict,
    read_use,
)

SHAPE = SecretShape(prefix="kl_live_", format=SecretFormat(checksum="crc32"))
KEYSPACE = KeyspaceView(keyspace_id="ks_1", shape=SHAPE)
SECRET = SHAPE.generate()
OTHER = SHAPE.generate()
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
FACTS = KeyFacts(
    key_id="key_1", keyspace_id="ks_1", organization_id="org_1", kind="solo", generation=1,
    scopes=Scopes(), plan_id="plan_1",
)  # fmt: skip


def headers(**named: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]


def secret_in(
    shown: list[tuple[bytes, bytes]], query: str = "", keyspace: KeyspaceView = KEYSPACE
) -> str | None:
    return read_use(shown, query, keyspace).secret


@pytest.mark.parametrize(
    "shown",
    [
        headers(authorization=f"Bearer {SECRET}"),
        headers(authorization=f"bearer   {SECRET}"),
        headers(x_api_key=SECRET),
        headers(x_api_key=SECRET, authorization=f"Bearer {SECRET}"),
        headers(x_api_key=SECRET, authorization=f"Bearer {JWT}"),
        headers(x_api_key=JWT, authorization=f"Bearer {SECRET}"),
    ],
)
def test_a_secret_is_found_where_the_keyspace_allows_it(shown: list[tuple[bytes, bytes]]) -> None:
    assert secret_in(shown) == SECRET


@pytest.mark.parametrize(
    "shown",
    [[], headers(authorization=f"Basic {SECRET}"), headers(x_other=SECRET), headers(authorization="Bearer ")],
)
def test_a_secret_anywhere_else_is_none(shown: list[tuple[bytes, bytes]]) -> None:
    assert secret_in(shown) is None


def test_a_value_without_the_shape_is_shown_when_there_is_no_better_one() -> None:
    assert secret_in(headers(authorization=f"Bearer {JWT}")) == JWT


def test_two_different_secrets_are_ambiguous() -> None:
    with pytest.raises(AmbiguousCredentialsError):
        secret_in(headers(x_api_key=SECRET, authorization=f"Bearer {OTHER}"))


def test_a_secret_in_the_url_counts_only_where_the_keyspace_asks_for_it() -> None:
    by_query = KeyspaceView(keyspace_id="ks_1", shape=SHAPE, credential_locations=("query:key",))

    assert secret_in([], f"key={SECRET}") is None
    assert secret_in([], f"key={SECRET}", by_query) == SECRET
    assert secret_in(headers(x_original_uri=f"/v1/chat?key={SECRET}"), "keyspace_id=ks_1", by_query) == SECRET
    assert secret_in(headers(x_forwarded_uri=f"/v1/chat?key={SECRET}"), "", by_query) == SECRET


def test_a_client_cannot_name_another_original_uri_than_the_proxy() -> None:
    tenants = KeyspaceView(keyspace_id="ks_1", shape=SHAPE, tenant_locations={"user_id": "query:user_id"})
    lying = headers(x_original_uri="/?user_id=mine", x_forwarded_uri="/?user_id=yours")

    with pytest.raises(BadRequestError):
        read_use(lying, "", tenants)

    for behind in ("chat", ""):
        assert read_use(lying, "user_id=theirs", tenants, path=behind).use.tenant == Tenant(user_id="theirs")


TWO_READINGS = [
    [("x-original-uri", "/?user_id=mine#&user_id=yours")],
    [("x-original-uri", "/?user\t_id=mine")],
    [("x-forwarded-uri", "/?user_id=mine\t")],
    [("x-forwarded-uri", "/?user_id=mine\x7f")],
    [("x-original-uri", "/?user_id=mine"), ("x-original-uri", "/?user_id=yours")],
    [("x-original-uri", "/?user_id=mine"), ("x-original-uri", "")],
    [("x-forwarded-uri", ""), ("x-original-uri", "/?user_id=mine")],
    [("x-keyledger-model", "small"), ("x-keyledger-model", "large")],
    [("x-keyledger-model", ""), ("x-keyledger-model", "large")],
    [("x-keyledger-project", "a\tb")],
    [("x-keyledger-permission", "chat"), ("x-keyledger-permission", "images")],
    [("x-keyledger-cost-micros", "1"), ("x-keyledger-cost-micros", "2")],
]


@pytest.mark.parametrize("locations", [{}, {"user_id": "query:user_id"}])
@pytest.mark.parametrize("said", TWO_READINGS)
def test_what_two_readers_might_read_differently_is_refused(
    said: list[tuple[str, str]], locations: dict[str, str]
) -> None:
    keyspace = KeyspaceView(keyspace_id="ks_1", shape=SHAPE, tenant_locations=locations)
    shown = [(name.encode(), value.encode("latin-1")) for name, value in said]

    for beside in ([], headers(authorization=f"Bearer {SECRET}")):
        with pytest.raises(BadRequestError) as refused:
            read_use([*shown, *beside], "", keyspace)

        assert (refused.value.field or "").lower() in {said[0][0], "x-original-uri"}


def test_the_use_is_read_from_headers_and_from_the_original_uri() -> None:
    keyspace = KeyspaceView(
        keyspace_id="ks_1", shape=SHAPE, tenant_locations={"org_id": "query:org", "user_id": "header:X-User"}
    )
    shown = headers(
        x_keyledger_model="m", x_keyledger_project="prj_1", x_keyledger_permission="a, b",
        x_keyledger_provider="p", x_keyledger_cost_micros="12", x_keyledger_request_id="r1",
        x_original_uri="/chat?org=acme", x_user="ada",
    )  # fmt: skip

    read = read_use(shown, "", keyspace, peer="192.0.2.1")

    assert read.use == Use(
        permissions=("a", "b"), project_id="prj_1", model="m", provider="p",
        tenant=Tenant(org_id="acme", user_id="ada"), ip="192.0.2.1",
    )  # fmt: skip
    assert (read.cost_micros, read.request_id) == (12, "r1")


def test_a_use_that_names_nothing_is_the_plain_one() -> None:
    assert read_use(headers(x_api_key=SECRET), "", KEYSPACE).use is NO_USE


@pytest.mark.parametrize("cost", ["-1", "1.5", "x", "9223372036854775808", "1_0", "٣", "9" * 40, "0" * 41])
def test_a_cost_that_is_no_amount_is_refused(cost: str) -> None:
    with pytest.raises(BadRequestError):
        read_use([(b"x-keyledger-cost-micros", cost.encode("utf-8"))], "", KEYSPACE)


@pytest.mark.parametrize("zeros", [0, 1, 18, 19, 20, 36])
def test_zeros_before_a_cost_do_not_change_it(zeros: int) -> None:
    assert read_use(headers(x_keyledger_cost_micros="0" * zeros + "1500"), "", KEYSPACE).cost_micros == 1_500


def test_headers_say_what_they_say_in_utf_8() -> None:
    keyspace = KeyspaceView(keyspace_id="ks_1", shape=SHAPE, tenant_locations={"user_id": "header:X-User"})
    read = read_use(headers(x_keyledger_model="größte", x_user="zoë"), "", keyspace)

    assert read.use == Use(model="größte", tenant=Tenant(user_id="zoë"))


@pytest.mark.parametrize("name, field", [("x-keyledger-model", "X-Keyledger-Model"), ("x-user", "user_id")])
def test_bytes_that_are_no_text_are_refused(name: str, field: str) -> None:
    keyspace = KeyspaceView(keyspace_id="ks_1", shape=SHAPE, tenant_locations={"user_id": "header:X-User"})
    with pytest.raises(BadRequestError) as refused:
        read_use([(name.encode(), b"m\xe9")], "", keyspace)

    assert refused.value.field == field


ADDRESSES = """
    peer          forwarded                        outcome
    192.0.2.1     203.0.113.9                      192.0.2.1
    10.0.0.1      203.0.113.9                      203.0.113.9
    10.0.0.1      198.51.100.1,203.0.113.9         203.0.113.9
    10.0.0.1      198.51.100.1,203.0.113.9,10.0.0.2  203.0.113.9
    10.0.0.1      203.0.113.9:4711                 203.0.113.9
    10.0.0.1      [2001:db8::1]:4711               2001:db8::1
    10.0.0.1      203.0.113.9,nonsense             -
    10.0.0.1      -                                10.0.0.1
"""


@pytest.mark.parametrize("peer,forwarded,outcome", [row.split() for row in ADDRESSES.split("\n")[2:-1]])
def test_forwarded_addresses_count_only_from_trusted_proxies(peer: str, forwarded: str, outcome: str) -> None:
    shown = [] if forwarded == "-" else headers(x_forwarded_for=forwarded)

    use = read_use(shown, "", KEYSPACE, peer=peer, trusted_proxies=("10.0.0.0/8",)).use

    assert use.ip == (None if outcome == "-" else outcome)


def test_a_valid_verdict_hands_on_whose_key_it_is() -> None:
    answer = answer_verdict(Verdict("valid", FACTS), KEYSPACE)

    assert answer.status == 200
    assert dict(answer.headers) == {
        b"x-keyledger-code": b"valid",
        b"x-keyledger-key-id": b"key_1",
        b"x-keyledger-organization-id": b"org_1",
        b"x-keyledger-plan-id": b"plan_1",
        b"cache-control": b"no-store",
    }


def test_what_a_good_key_has_not_is_told_empty_so_that_no_proxy_keeps_what_the_client_said() -> None:
    bare = msgspec.structs.replace(FACTS, organization_id=None, plan_id=None)

    told = dict(answer_verdict(Verdict("valid", bare), KEYSPACE).headers)

    assert (told[b"x-keyledger-organization-id"], told[b"x-keyledger-plan-id"]) == (b"", b"")


def test_a_denial_names_whom_it_knows_and_nobody_else() -> None:
    known = dict(answer_verdict(Verdict("revoked", FACTS), KEYSPACE).headers)
    unknown = dict(answer_verdict(Verdict("not_found"), KEYSPACE).headers)

    assert known[b"x-keyledger-plan-id"] == b"plan_1"
    assert {name for name in unknown if name.startswith(b"x-keyledger")} == {b"x-keyledger-code"}


def test_a_denial_is_a_problem_with_its_code() -> None:
    answer = answer_verdict(Verdict("revoked", FACTS), KEYSPACE)
    problem = msgspec.json.decode(answer.body)

    assert (answer.status, problem["status"], problem["code"]) == (401, 401, "revoked")
    assert dict(answer.headers)[b"www-authenticate"] == b'Bearer realm="keyledger", error="invalid_token"'


def test_a_keyspace_says_its_own_status() -> None:
    keyspace = KeyspaceView(
        keyspace_id="ks_1", shape=SHAPE, denial_status={"billing_shortfall": 403, "valid": 500}
    )

    assert answer_verdict(Verdict("billing_shortfall"), keyspace).status == 403
    assert answer_verdict(Verdict("valid", FACTS), keyspace).status == 200


def test_an_unknown_code_means_no() -> None:
    assert answer_verdict(Verdict("brand_new"), KEYSPACE).status == 403


@pytest.mark.parametrize(
    "code,status,real",
    [
        ("valid", 200, b"200"),
        ("revoked", 401, b"401"),
        ("rate_limited", 403, b"429"),
        ("billing_shortfall", 403, b"402"),
    ],
)
def test_nginx_gets_what_it_understands_and_the_real_status_beside(
    code: str, status: int, real: bytes
) -> None:
    answer = answer_verdict(Verdict(code, FACTS), KEYSPACE, proxy="nginx")

    assert (answer.status, dict(answer.headers)[b"x-keyledger-status"]) == (status, real)


def test_rate_limits_are_said_as_the_ietf_says_them() -> None:
    states = (RateState('per "minute"', 100, 60, 0, 17), RateState("day", 1000, 86400, 400, 3600))
    found = dict(answer_verdict(Verdict("rate_limited", FACTS, states), KEYSPACE).headers)

    assert found[b"ratelimit-policy"] == b'"per \\"minute\\"";q=100;w=60, "day";q=1000;w=86400'
    assert found[b"ratelimit"] == b'"per \\"minute\\"";r=0;t=17, "day";r=400;t=3600'
    assert found[b"retry-after"] == b"17"


def test_a_limit_name_cannot_break_out_of_its_header() -> None:
    found = dict(
        answer_verdict(Verdict("valid", FACTS, (RateState("a\r\nX: y", 1, 1, 1, 1),)), KEYSPACE).headers
    )

    assert b"\n" not in found[b"ratelimit"]


def test_what_cannot_be_read_is_a_bad_request_that_names_the_field() -> None:
    answer = answer_error(BadRequestError("No.", field="X-Keyledger-Cost-Micros"))

    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["errors"] == [
        {"field": "X-Keyledger-Cost-Micros", "message": "No."}
    ]
    assert answer_error(AmbiguousCredentialsError(), proxy="nginx").status == 403
