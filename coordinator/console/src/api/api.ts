/** The coordinator's API: one request, and its answer or a `Problem`. */

import { cell } from "../lib/cell";

/** What was refused (RFC 9457), or why there was no answer at all: status 0. */
export class Problem extends Error {
  readonly status: number;
  /** A code of docs/errors.md, `request`, or `unreachable`. */
  readonly code: string;
  readonly retryable: boolean;
  /** Seconds after which it may be tried again, where the server said so. */
  readonly retryAfter: number | null;

  constructor(what: {
    status: number;
    code: string;
    detail: string;
    retryable?: boolean;
    retryAfter?: number | null;
  }) {
    super(what.detail);
    this.status = what.status;
    this.code = what.code;
    this.retryable = what.retryable ?? false;
    this.retryAfter = what.retryAfter ?? null;
  }
}

/** Counts answers of 401: whoever follows it shows the login page. */
export const refusals = cell(0);

export type Query = Record<string, string | number | boolean | undefined>;

function withQuery(path: string, query: Query): string {
  const asked = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  if (asked.length === 0) return path;
  return `${path}?${new URLSearchParams(asked.map(([name, value]) => [name, String(value)]))}`;
}

async function problemOf(response: Response): Promise<Problem> {
  const wait = Number(response.headers.get("Retry-After"));
  const what = {
    status: response.status,
    code: "request",
    detail: response.statusText || String(response.status),
    retryAfter: response.headers.has("Retry-After") && Number.isFinite(wait) ? wait : null,
  };
  try {
    const body = await response.json();
    // Under /v1 errors are as OpenAI's clients read them.
    if (body.error) return new Problem({ ...what, detail: String(body.error.message) });
    return new Problem({
      ...what,
      code: String(body.type ?? "request").replace("urn:llmos:", ""),
      detail: String(body.detail ?? what.detail),
      retryable: body.retryable === true,
    });
  } catch {
    return new Problem(what);
  }
}

export interface Asked {
  body?: unknown;
  query?: Query;
  signal?: AbortSignal;
}

/** The answer before it is read: for streams. */
export async function ask(method: string, path: string, asked: Asked = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(withQuery(path, asked.query ?? {}), {
      method,
      credentials: "same-origin",
      ...(asked.signal ? { signal: asked.signal } : {}),
      ...(asked.body === undefined
        ? {}
        : { body: JSON.stringify(asked.body), headers: { "Content-Type": "application/json" } }),
    });
  } catch (err) {
    if (asked.signal?.aborted) throw err;
    throw new Problem({ status: 0, code: "unreachable", detail: "", retryable: true });
  }
  if (response.ok) return response;
  // A wrong password is a 401 as well, and no reason to leave the page.
  if (response.status === 401 && !path.startsWith("/api/v1/session")) {
    refusals.set(refusals.get() + 1);
  }
  throw await problemOf(response);
}

async function read<T>(method: string, path: string, asked: Asked = {}): Promise<T> {
  const response = await ask(method, path, asked);
  const text = await response.text();
  return (text === "" ? null : JSON.parse(text)) as T;
}

export const api = {
  get: <T>(path: string, query: Query = {}, signal?: AbortSignal) =>
    read<T>("GET", path, { query, ...(signal ? { signal } : {}) }),
  post: <T>(path: string, body: unknown = {}) => read<T>("POST", path, { body }),
  put: <T>(path: string, body: unknown) => read<T>("PUT", path, { body }),
  delete: <T>(path: string) => read<T>("DELETE", path),
};

/** A part of a path: a name may hold anything. */
export const part = encodeURIComponent;

export interface Page<T> {
  items: T[];
  next: string | null;
}
