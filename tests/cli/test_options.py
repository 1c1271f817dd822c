"""No option is ignored silently: two that cannot both be meant are refused, and one that means nothing."""

import pytest

from services.cli.main import run

KEY = "key_01JD0000000000000000000000"
DIGEST = "ab" * 32
CONTRADICTIONS = {
    "a root key joins no keyspace": (
        ["keys", "create", "x", "--root", "--permission", "verify", "--keyspace", "main"],
        "--bound-to",
    ),
    "a root key is of no kind": (
        ["keys", "create", "x", "--root", "--permission", "verify", "--kind", "client"],
        "leave out --kind",
    ),
    "a root key has no quota": (
        ["keys", "create", "x", "--root", "--permission", "verify", "--quota", "requests/day=1"],
        "leave out --quota",
    ),
    "a root key has no other scope": (
        ["keys", "create", "x", "--root", "--permission", "verify", "--scope", "models=a"],
        "leave out --scope",
    ),
    "a root key without permissions": (["keys", "create", "x", "--root"], "needs --permission"),
    "only a root key is bound": (["keys", "create", "x", "--bound-to", "main"], "Only a root key is bound"),
    "permissions twice": (
        ["keys", "create", "x", "--permission", "a", "--scope", "permissions=b"],
        "--permission or --scope permissions=",
    ),
    "a scope twice": (
        ["keys", "create", "x", "--scope", "models=a", "--scope", "models=b"],
        "--scope gives models twice",
    ),
    "an edited scope twice": (["keys", "scopes", KEY, "models=a", "models=b"], "models twice"),
    "metadata twice": (
        ["orgs", "create", "x", "--metadata", "a=1", "--metadata", "a=2"],
        "--metadata gives a twice",
    ),
    "a denial twice": (
        ["keyspaces", "create", "x", "--denial", "revoked=404", "--denial", "revoked=410"],
        "--denial gives revoked twice",
    ),
    "quotas set and lifted": (
        ["keys", "update", KEY, "--quota", "requests/day=1", "--no-quotas"],
        "--quota or --no-quotas",
    ),
    "rate limits set and lifted": (
        ["keys", "update", KEY, "--rate-limit", "1/s", "--no-rate-limits"],
        "--rate-limit or --no-rate-limits",
    ),
    "addresses set and lifted": (
        ["keys", "update", KEY, "--allow-ip", "10.0.0.0/8", "--any-ip"],
        "--allow-ip or --any-ip",
    ),
    "a plan given and taken": (["keys", "update", KEY, "--plan", KEY, "--no-plan"], "--plan or --no-plan"),
    "an expiry and none": (
        ["keys", "update", KEY, "--expires", "30d", "--never-expires"],
        "--expires or --never-expires",
    ),
    "an organization's quotas": (
        ["orgs", "update", "Acme", "--quota", "requests/day=1", "--no-quotas"],
        "--quota or --no-quotas",
    ),
    "a project's quotas": (
        ["projects", "update", "Acme", "p", "--quota", "requests/day=1", "--no-quotas"],
        "--quota or --no-quotas",
    ),
    "an alert and none": (
        ["wallet", "terms", "Acme", "--alert-below", "5", "--no-alert"],
        "--alert-below or --no-alert",
    ),
    "three terms": (
        ["wallet", "terms", "Acme", "--credit-limit", "1", "--postpaid", "--prepaid"],
        "--credit-limit or --postpaid or --prepaid, not all",
    ),
    "a charge's name without a charge": (["verify", "-", "--request-id", "r"], "give --cost"),
    "an id and its keyspace": (["explain", "--key", KEY, "--keyspace", "main"], "--key or --keyspace"),
    "a secret and an id": (["explain", "-", "--key", KEY], "a secret or --key, not both"),
    "a charge of a secret and an id": (
        ["charges", "create", "-", "--key", KEY, "--amount", "1"],
        "a secret or --key, not both",
    ),
    "a charge's id and its keyspace": (
        ["charges", "create", "--key", KEY, "--amount", "1", "--keyspace", "main"],
        "--key or --keyspace",
    ),
    "a leaked secret and its digest": (["leak", "-", "--sha256", DIGEST], "a secret or --sha256"),
    "a file and a name": (["keys", "import", "/dev/null", "--name", "x"], "a file or --name"),
    "a file and a digest": (["keys", "import", "/dev/null", "--sha256", DIGEST], "a file or --sha256"),
    "a file and a secret": (["keys", "import", "/dev/null", "--secret-stdin"], "a file or --secret-stdin"),
    "a digest and a secret": (
        ["keys", "import", "--name", "x", "--sha256", DIGEST, "--secret-stdin"],
        "--sha256 or --secret-stdin",
    ),
    "two forms of an answer": (["audit", "list", "--json", "--format", "csv"], "--json or --format csv"),
}


@pytest.mark.parametrize("words,sentence", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused_before_the_ledger_is_asked(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEYLEDGER_API_KEY", "kl_root_nobody")
    monkeypatch.setenv("KEYLEDGER_URL", "http://127.0.0.1:9")

    assert run(words) == 2
    assert sentence in capsys.readouterr().err
