import { vi } from "vitest";

export interface Call {
  method: string;
  path: string;
  body: unknown;
}

export interface Answer {
  status?: number;
  body?: unknown;
  headers?: Record<string, string>;
}

/** Answers by `"GET /api/v1/…"`, each as a value or as what a call makes of it. */
export type Answers = Record<string, Answer | ((call: Call) => Answer)>;

export const ADMIN = { name: "ada", role: "admin", kind: "person", first: false, oidc: false };
export const STRANGER = { name: null, role: null, kind: null, first: false, oidc: false };

/** Stand in for the coordinator; what it was asked is in the list that this returns. */
export function fakeApi(answers: Answers): Call[] {
  const calls: Call[] = [];
  vi.stubGlobal("fetch", async (path: string, init: RequestInit) => {
    const call = {
      method: init.method ?? "GET",
      path,
      body: typeof init.body === "string" ? JSON.parse(init.body) : undefined,
    };
    calls.push(call);
    const found = answers[`${call.method} ${path}`] ?? { status: 404, body: problem(404, path) };
    const { status = 200, body, headers } = typeof found === "function" ? found(call) : found;
    return new Response(body === undefined ? null : JSON.stringify(body), { status, headers });
  });
  return calls;
}

export function problem(status: number, detail: string, code = "request") {
  return { type: `urn:llmos:${code}`, title: "", detail, status, retryable: false };
}
