/** A refusal in the API's own words: RFC 9457, or an error as OpenAI's clients read it. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly retryAfterS: number | null = null,
  ) {
    super(detail);
  }
}

export interface Page<Item> {
  items: Item[];
  next: string | null;
}

type Listener = () => void;
const signedOut = new Set<Listener>();

/** Calls `listener` when an answer says that nobody is signed in any more. */
export function onSignedOut(listener: Listener): Listener {
  signedOut.add(listener);
  return () => signedOut.delete(listener);
}

/** Sends one request and gives its JSON; anything but success is a {@link Problem}. */
export async function call<Answer>(method: string, path: string, body?: unknown): Promise<Answer> {
  const answer = await send(method, path, body);
  return (answer.status === 204 ? undefined : await answer.json()) as Answer;
}

/** Sends one request and gives the answer, whose body was not read yet. */
export async function send(
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "unreachable", "The coordinator does not answer.");
  }
  if (answer.ok) return answer;
  const problem = await problemOf(answer);
  if (problem.status === 401 && !path.startsWith("/api/v1/session")) {
    for (const listener of signedOut) listener();
  }
  throw problem;
}

async function problemOf(answer: Response): Promise<Problem> {
  const retryAfter = Number(answer.headers.get("Retry-After"));
  const after = Number.isFinite(retryAfter) && retryAfter > 0 ? retryAfter : null;
  try {
    const said = await answer.json();
    const code = String(said.error?.code ?? said.type ?? "").replace(/^urn:llmos:/, "");
    const detail = String(said.error?.message ?? said.detail ?? answer.statusText);
    return new Problem(answer.status, code, detail, after);
  } catch {
    return new Problem(answer.status, "", `HTTP ${answer.status}`, after);
  }
}

/** A path whose values are quoted, as a tag: path`/api/v1/runs/${run}`. */
export function path(strings: TemplateStringsArray, ...values: string[]): string {
  return String.raw({ raw: strings }, ...values.map(encodeURIComponent));
}
