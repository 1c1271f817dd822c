"""A simulated day at five gateways, from the first key to the checks in the evening."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import ClientSession, ClientTimeout, web

import keyledger_edge
from keyledger_edge import KeyledgerMiddleware, Verifier
from services.demo.gateways import Use, ask, gateway_behind_forward_auth, served_app
from services.demo.office import UNIT, Office
from services.demo.story import ClientAnswer, Story, Tell
from services.demo.temporary_ledger import TemporaryLedger, temporary_ledger

_MONTH: Final = 50_000_000
_CALLS: Final = itertools.count(1)


def live_through(tell: Tell | None) -> Story:
    """Start a ledger, simulate the day, check the ledger, stop it."""
    story = Story(tell)
    story.told("A ledger starts: PostgreSQL, NATS, API and worker, in a temporary folder.")
    with temporary_ledger() as ledger:
        story.told(f"It answers at {ledger.url}.")
        asyncio.run(_day(story, ledger))
        _evening(story, ledger)
    story.end()
    return story


async def _day(story: Story, ledger: TemporaryLedger) -> None:
    async with ClientSession(timeout=ClientTimeout(total=20)) as session:
        office = Office(session, ledger.url, ledger.root_key)
        proxy_key = await office.root_key("gateways", ["verify", "charges:write"])
        day = _Day(story, ledger, session, office, proxy_key)
        await day.leanmcp()
        await day.mindproxy()
        await day.leapter()
        await day.leadmagic()
        await day.allmcp()
        await _no_secret_was_written(story, ledger, office)


class _Day:
    """The five gateways, one after the other."""

    def __init__(
        self, story: Story, ledger: TemporaryLedger, session: ClientSession, office: Office, proxy_key: str
    ) -> None:
        self.story = story
        self.ledger = ledger
        self.session = session
        self.office = office
        self.proxy_key = proxy_key

    def _gateway(self, keyspace_id: str, use: Use) -> Any:
        return gateway_behind_forward_auth(self.session, self.ledger.url, self.proxy_key, keyspace_id, use)

    async def _call(self, url: str, method: str = "POST", **request: Any) -> ClientAnswer:
        return await ask(self.session, method, url, **request)

    async def leanmcp(self) -> None:
        """Tools over MCP: a wallet, and 402 when it is empty."""
        story, office = self.story, self.office
        story.chapter("LeanMCP", "Tools for agents, 0.25 a call, paid from the customer's wallet.")
        keyspace = await office.keyspace("leanmcp")
        northwind = await office.organization("Northwind", units=1)
        key_id, secret = await office.key(keyspace, northwind, "Ada's agent")
        story.told("Northwind deposits 1.00 and gets a key for Ada's agent.")
        async with self._gateway(keyspace, _priced(0.25)) as gateway:
            url = f"{gateway.url}/mcp"
            answers = [await self._call(url, headers=_bearer(secret)) for _ in range(4)]
            story.answered("the agent calls a tool with `Authorization: Bearer`", answers[0], 200)
            story.promise("and three more times", [200] * 3, [one.status for one in answers[1:]])
            story.promise("the upstream learns who calls", key_id, gateway.reached[0]["X-Keyledger-Key-Id"])
            kept = [name for name, value in gateway.reached[0].items() if secret in value]
            story.promise("and never sees the secret", [], kept)
            story.answered(
                "the fifth call: 1.00 is spent", await self._call(url, headers=_bearer(secret)),
                402, "billing_shortfall",
            )  # fmt: skip
            await office.deposit(northwind, 0.5)
            story.answered(
                "after a top-up of 0.50 it goes on", await self._call(url, headers=_bearer(secret)), 200
            )
            missing = await self._call(url)
            story.answered("a client without a key", missing, 401, "missing")
            story.promise(
                "learns how to send one", True, "Bearer" in missing.headers.get("WWW-Authenticate", "")
            )
            story.answered(
                "a client with a key that a chat window cut off",
                await self._call(url, headers=_bearer(secret[:-6])), 401, "malformed",
            )  # fmt: skip
            fence = (await office.ask("POST", f"/v1/keys/{key_id}/revoke", {"reason": "agent retired"}))[
                "fence"
            ]
            story.promise("the key is revoked, and the fence holds", True, fence["held"])
            story.answered(
                "the next call of the agent", await self._call(url, headers=_bearer(secret)), 401, "revoked"
            )
        wallet = await office.wallet(northwind)
        story.promise("Northwind has 0.25 left", UNIT // 4, wallet["available_micros"])

    async def mindproxy(self) -> None:
        """Models behind one address: a plan, a monthly limit, three places for the key."""
        story, office = self.story, self.office
        story.chapter("MindProxy", "Models behind one address; a plan makes prices 1.25 times as high.")
        keyspace = await office.keyspace("mindproxy")
        plan = await office.ask(
            "POST", "/v1/plans", {"name": "pro", "models": ["gpt-5", "claude"], "price_multiplier": "1.25"}
        )
        contoso = await office.organization("Contoso", units=4)
        limit = {"unit": "micros", "window": "month", "limit": 3 * UNIT, "alert_percents": [80]}
        key_id, secret = await office.key(keyspace, contoso, "Chat", plan_id=plan["id"], quotas=[limit])
        story.told("Contoso deposits 4.00; the key of its chat may spend 3.00 a month.")

        def use(request: web.Request) -> Mapping[str, str]:
            # A real gateway reads the model from the body; here it is in the path.
            return {**_priced(0.8)(request), "X-Keyledger-Model": request.path.rsplit("/", 1)[-1]}

        async with self._gateway(keyspace, use) as gateway:
            url = f"{gateway.url}/v1/models"
            story.answered(
                "gpt-5 with `Authorization: Bearer`",
                await self._call(f"{url}/gpt-5", headers=_bearer(secret)), 200,
            )  # fmt: skip
            story.answered(
                "claude with `x-api-key`",
                await self._call(f"{url}/claude", headers={"x-api-key": secret}), 200,
            )  # fmt: skip
            story.answered(
                "gpt-5 with `?key=`, as in a script from 2019",
                await self._call(f"{url}/gpt-5", params={"key": secret}), 200,
            )  # fmt: skip
            story.answered(
                "a model that the plan does not include",
                await self._call(f"{url}/o9-max", headers=_bearer(secret)), 403, "model_denied",
            )  # fmt: skip
            other = await office.key(keyspace, contoso, "Another")
            story.answered(
                "two different keys in one request",
                await self._call(f"{url}/gpt-5", headers=_bearer(secret) | {"x-api-key": other[1]}),
                400, "ambiguous_credentials",
            )  # fmt: skip
            story.answered(
                "a fourth call at 0.80 x 1.25: 3.00 are spent",
                await self._call(f"{url}/gpt-5", headers=_bearer(secret)), 402, "api_key_quota_exceeded",
            )  # fmt: skip
            await office.ask("PATCH", f"/v1/keys/{key_id}", {"quotas": [limit | {"limit": _MONTH}]})
            story.answered(
                "the limit is raised to 50.00, and it goes on",
                await self._call(f"{url}/gpt-5", headers=_bearer(secret)), 200,
            )  # fmt: skip
            story.answered(
                "now the wallet is empty",
                await self._call(f"{url}/gpt-5", headers=_bearer(secret)), 402, "billing_shortfall",
            )  # fmt: skip
        wallet = await office.wallet(contoso)
        story.promise("four calls at 0.80 cost 4.00, to the micro", 0, wallet["balance_micros"])

    async def leapter(self) -> None:
        """Projects, checked in the application itself by the embedded edge."""
        story, office = self.story, self.office
        story.chapter("Leapter", "Projects; the application embeds the edge and answers from its memory.")
        keyspace = await office.keyspace("leapter")
        fabrikam = await office.organization("Fabrikam")
        path = f"/v1/organizations/{fabrikam}/projects"
        search, billing = [
            (await office.ask("POST", path, {"name": name}))["id"] for name in ("search", "billing")
        ]
        key_id, secret = await office.key(keyspace, fabrikam, "Builder", scopes={"projects": [search]})
        story.told("Fabrikam's builder gets a key for the project `search` only.")
        edge_key = await office.root_key("leapter-edge", ["edges:connect", "charges:write"])
        verifier = Verifier.at(self.ledger.url, edge_key, keyspace_ids=(keyspace,), name="leapter")
        app = KeyledgerMiddleware(_application, verifier, keyspace_id=keyspace, use=_project_of)
        async with served_app(app) as url:
            await _until_ready(verifier)

            async def build(project: str, secret: str) -> ClientAnswer:
                return await self._call(f"{url}/{project}/build", headers={"X-API-Key": secret})

            story.answered("a build in `search`", await build(search, secret), 200)
            story.answered("a build in `billing`", await build(billing, secret), 403, "project_denied")
            story.answered(
                "a build that names no project",
                await self._call(f"{url}/build", headers={"X-API-Key": secret}), 403, "project_denied",
            )  # fmt: skip
            await office.ask("PATCH", f"/v1/keys/{key_id}/scopes", {"projects": [search, billing]})
            story.answered("`billing` is added; the secret stays valid", await build(billing, secret), 200)
            new = await office.rotate(key_id, overlap_seconds=3_600)
            story.told("The key is rotated with an hour of overlap.")
            story.answered("a build with the old secret", await build(search, secret), 200)
            story.answered("a build with the new secret", await build(search, new), 200)
            last = await office.rotate(key_id)
            story.told("It is rotated again, at once: a laptop was stolen.")
            story.answered("a build with the secret on the laptop", await build(search, new), 401, "rotated")
            story.answered("a build with the last secret", await build(search, last), 200)
            hits = verifier.metrics()["hits_total"]
            story.promise("some of these were answered from the edge's memory", True, hits > 0)

    async def leadmagic(self) -> None:
        """Credits: 403 when none remain, and asking what is left is free."""
        story, office = self.story, self.office
        story.chapter("LeadMagic", "Credits, one for each e-mail found; clients know 403 for none left.")
        keyspace = await office.keyspace("leadmagic")
        tailspin = await office.organization("Tailspin", units=3)
        key_id, secret = await office.key(keyspace, tailspin, "CRM")
        shown = {"x-leadmagic-key": secret}
        story.told("Tailspin buys 3 credits.")
        async with self._gateway(keyspace, _priced(1)) as gateway:
            url = f"{gateway.url}/email-finder"
            typo = secret[:-7] + ("a" if secret[-7] != "a" else "b") + secret[-6:]
            story.answered(
                "a mistyped key: the checksum is wrong, nothing is looked up",
                await self._call(url, headers={"x-leadmagic-key": typo}), 401, "malformed",
            )  # fmt: skip
            answers = await asyncio.gather(*(self._call(url, headers=shown) for _ in range(5)))
            story.promise(
                "five look-ups at the same moment: three pass, two do not",
                [200, 200, 200, 403, 403],
                sorted(one.status for one in answers),
            )
            refused = next((one for one in answers if one.status != 200), answers[0])  # noqa: PLR2004 - HTTP's own
            story.answered("one of the two", refused, 403, "billing_shortfall")
            own = await self._call(
                f"{self.ledger.url}/v1/self", "GET", headers=shown, params={"keyspace_id": keyspace},
            )  # fmt: skip
            story.answered("asking what is left costs nothing", own, 200)
            story.promise("and says 0", 0, own.body.get("wallet_available_micros"))
            await office.ask("POST", f"/v1/keys/{key_id}/disable", {"reason": "looks odd"})
            story.answered(
                "the key is disabled over lunch", await self._call(url, headers=shown), 401, "disabled"
            )
            await office.ask("POST", f"/v1/keys/{key_id}/enable", {})
            await office.deposit(tailspin, 1)
            story.answered("it is enabled, and a credit bought", await self._call(url, headers=shown), 200)

    async def allmcp(self) -> None:
        """Tenants of tenants, a rate limit, a suspension, and a leak."""
        story, office = self.story, self.office
        story.chapter("AllMCP", "Platforms with companies of their own, named by ?org_id= and ?user_id=.")
        keyspace = await office.keyspace("allmcp")
        wingtip = await office.organization("Wingtip")
        key_id, secret = await office.key(
            keyspace, wingtip, "Platform", kind="platform", scopes={"tenants": ["toys", "books"]},
            rate_limits=[{"name": "burst", "limit": 6, "window_seconds": 60}],
        )  # fmt: skip
        story.told("Wingtip's platform may act for two companies, `toys` and `books`, six times a minute.")
        shown = {"X-API-Key": secret}
        async with self._gateway(keyspace, lambda _: {}) as gateway:
            url = f"{gateway.url}/mcp"

            async def act(org: str, headers: Mapping[str, str] = shown) -> ClientAnswer:
                return await self._call(url, params={"org_id": org, "user_id": "u-1"}, headers=headers)

            story.answered("it acts for `toys`", await act("toys"), 200)
            story.answered(
                "and for `books`, with `Authorization: Bearer`", await act("books", _bearer(secret)), 200
            )
            story.answered("for a company that it may not act for", await act("shoes"), 403, "tenant_denied")
            story.answered(
                "without naming a company", await self._call(url, headers=shown), 403, "tenant_denied"
            )
            answers = [await act("toys") for _ in range(5)]
            story.promise(
                "five more: four pass, since refused uses consumed nothing",
                [200, 200, 200, 200, 429], [one.status for one in answers],
            )  # fmt: skip
            story.answered("the last one", answers[-1], 429, "rate_limited")
            story.promise("learns when to retry", True, int(answers[-1].headers["Retry-After"]) > 0)
            await office.ask("PATCH", f"/v1/keys/{key_id}", {"rate_limits": []})
            await office.ask("POST", f"/v1/organizations/{wingtip}/suspend", {"reason": "unpaid"})
            story.answered("Wingtip is suspended", await act("toys"), 403, "organization_suspended")
            await office.ask("POST", f"/v1/organizations/{wingtip}/resume", {})
            story.answered("it pays, and is resumed", await act("toys"), 200)
            leak = await office.ask(
                "POST",
                "/v1/leaks",
                {"secret": secret, "keyspace_id": keyspace, "source": "a public notebook"},
            )
            story.promise("its secret appears in a public notebook; the key is found", True, leak["found"])
            story.answered("the next call with it", await act("toys"), 401, "revoked")


def _evening(story: Story, ledger: TemporaryLedger) -> None:
    story.chapter("In the evening", "The books are checked.")
    for command, promise in (
        (("reconcile", "--json"), "every balance and counter equals its events"),
        (("rebuild", "--check", "--json"), "the projections agree with the log"),
        (("doctor", "--json"), "the doctor finds nothing broken"),
    ):
        done = ledger.run(*command)
        found = json.loads(done.stdout) if done.returncode == 0 else done.stderr or done.stdout
        story.promise(f"`keyledger {' '.join(command[:-1])}`: {promise}", 0, done.returncode)
        if done.returncode != 0:
            story.told(str(found))


async def _no_secret_was_written(story: Story, ledger: TemporaryLedger, office: Office) -> None:
    story.chapter("Meanwhile", "Everything that was written to disk is searched for secrets.")
    wanted = [secret.encode() for secret in office.secrets]
    found = await asyncio.to_thread(
        lambda: [name for name, content in ledger.written() if any(one in content for one in wanted)]
    )
    story.promise(f"{len(wanted)} secrets in tables, logs and streams: none", [], found)


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def _priced(units: float) -> Use:
    """What a call costs, as a gateway reports it, with a request id for each call."""

    def use(_: web.Request) -> dict[str, str]:
        return {
            "X-Keyledger-Cost-Micros": str(round(units * UNIT)),
            "X-Keyledger-Request-Id": f"call-{next(_CALLS)}",
        }

    return use


async def _application(scope: Any, receive: Any, send: Any) -> None:
    """Leapter's own application: only requests that are allowed reach it."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps({"code": "valid", "key": scope["state"]["keyledger"].key_id}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _project_of(scope: Any) -> keyledger_edge.Use:
    first = scope["path"].split("/")[1]
    return keyledger_edge.Use(project_id=first if first.startswith("prj_") else None)


async def _until_ready(verifier: Verifier) -> None:
    for _ in range(200):
        if verifier.ready:
            return
        await asyncio.sleep(0.02)
