// The calls of docs/tutorial.md, typed by what is generated from /schema/openapi.json.
import createClient from "openapi-fetch";
import type { components, paths } from "./keyledger.js";

const ledger = createClient<paths>({
  baseUrl: "http://127.0.0.1:8700",
  headers: { Authorization: "Bearer kl_root_..." },
});

function told<T>(answer: { data?: T; error?: { code: string; detail: string } }): T {
  if (answer.data === undefined) throw new Error(`${answer.error?.code}: ${answer.error?.detail}`);
  return answer.data;
}

export async function tutorial(): Promise<void> {
  const keyspace = told(
    await ledger.POST("/v1/keyspaces", { body: { name: "leadfinder", preset: "leadmagic" } }),
  );
  const organization = told(
    await ledger.POST("/v1/organizations", { body: { name: "Acme", external_id: "cus_42" } }),
  );
  const credited = told(
    await ledger.POST("/v1/organizations/{organization_id}/wallet/credits", {
      params: { path: { organization_id: organization.id } },
      body: { amount_micros: 3_000_000, reference: "invoice-7" },
    }),
  );
  const balance: number = credited.wallet.balance_micros;

  const made = told(
    await ledger.POST("/v1/keys", {
      params: { header: { "Idempotency-Key": "importer" } },
      body: {
        keyspace_id: keyspace.id,
        organization_id: organization.id,
        name: "Importer",
        quotas: [{ unit: "micros", window: "month", limit: 2_000_000, alert_percents: [80] }],
      },
    }),
  );
  if (made.secret === null) throw new Error("a replay: the secret was shown already");
  const secret: string = made.secret;
  const models: string[] | "*" = made.key.scopes.models;

  const verdict = told(
    await ledger.POST("/v1/verify", {
      body: { secret, keyspace_id: keyspace.id, cost_micros: 1_500_000, request_id: "lookup-1" },
    }),
  );
  if (verdict.valid) {
    const charged: number | undefined = verdict.charge?.amount_micros;
    console.log(charged, verdict.quotas?.[0]?.remaining);
  } else if (verdict.code === "api_key_quota_exceeded") {
    console.log(verdict.refusal?.remaining);
  }

  const charge = await ledger.POST("/v1/charges", {
    body: { key_id: made.key.id, request_id: "lookup-2", amount_micros: 1_500_000 },
  });
  if (charge.response.status === 402 && charge.error !== undefined) {
    const code: components["schemas"]["CreateChargeProblem"]["code"] = charge.error.code;
    const left: number | undefined = charge.error.refusal?.remaining;
    const level: "key" | "project" | "organization" | "wallet" | undefined = charge.error.refusal?.level;
    console.log(code, left, level);
  }

  const both = told(
    await ledger.POST("/v1/charges/batch", {
      body: { items: [{ key_id: made.key.id, request_id: "lookup-3", amount_micros: 1 }] },
    }),
  );
  for (const result of both.results) {
    if (result.status === 201 && "charge" in result) console.log(result.charge.id, result.replayed);
    else if ("code" in result) console.log(result.code, result.refusal?.remaining);
  }

  const explained = told(
    await ledger.POST("/v1/explain", { body: { key_id: made.key.id, cost_micros: 1_500_000 } }),
  );
  for (const rule of explained.rules) console.log(rule.code, rule.figures.quotas?.[0]?.remaining);

  const page = told(await ledger.GET("/v1/keys", { params: { query: { organization_id: organization.id } } }));
  const next: string | null = page.next_cursor;

  const rotated = told(
    await ledger.POST("/v1/keys/{key_id}/rotate", {
      params: { path: { key_id: made.key.id } },
      body: { overlap_seconds: 86_400 },
    }),
  );
  const revoked = told(
    await ledger.POST("/v1/keys/{key_id}/revoke", {
      params: {
        path: { key_id: made.key.id },
        query: { fence: true },
        header: { "If-Match": `"${rotated.key.version}"` },
      },
      body: { reason: "leaked" },
    }),
  );
  const held: boolean | undefined = revoked.fence?.held;
  console.log(balance, models, next, held);

  // What does not exist is refused by the compiler.
  // @ts-expect-error a code that no charge answers
  const strange: components["schemas"]["CreateChargeProblem"]["code"] = "no_such_code";
  // @ts-expect-error a body without what is needed
  await ledger.POST("/v1/charges", { body: { request_id: "lookup-4" } });
  console.log(strange);
}
