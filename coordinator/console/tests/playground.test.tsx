import { render, screen } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it, vi } from "vitest";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi } from "./support/fake_api";

const MODELS = {
  body: { data: [{ id: "shop" }, { id: "words", task: "embed" }, { id: "other" }] },
};
const RUNS = {
  body: {
    items: [
      { run: "replies", adapter: "ab", task: "causal-lm" },
      { run: "tickets", adapter: "cd", task: "text-classification" },
      { run: "begun", adapter: "", task: "causal-lm" },
    ],
    next: null,
  },
};

function event(words: string): string {
  return `data: ${JSON.stringify({ choices: [{ delta: { content: words } }] })}\n\n`;
}

async function playground(answers: Answers = {}, who: object = ADMIN) {
  window.location.hash = "#/playground";
  const calls = fakeApi({
    "GET /api/v1/session": { body: who },
    "GET /v1/models": MODELS,
    "GET /api/v1/runs?limit=200": RUNS,
    ...answers,
  });
  const others = globalThis.fetch;
  const streams: ReadableStreamDefaultController<Uint8Array>[] = [];
  const signals: (AbortSignal | undefined)[] = [];
  vi.stubGlobal("fetch", async (path: string, init: RequestInit) => {
    if (path !== "/v1/chat/completions" || path in answers) return others(path, init);
    if (`POST ${path}` in answers) return others(path, init);
    calls.push({ method: "POST", path, body: JSON.parse(String(init.body)) });
    const signal = init.signal ?? undefined;
    signals.push(signal);
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        streams.push(controller);
        signal?.addEventListener("abort", () => controller.error(signal.reason));
      },
    });
    return new Response(body);
  });
  render(<App />);
  const box = await screen.findByLabelText("Your question");
  const says = (text: string) => streams.at(-1)?.enqueue(new TextEncoder().encode(text));
  return { calls, box, says, ends: () => streams.at(-1)?.close(), signals };
}

describe("the playground", () => {
  it("asks the model that was chosen, with a run's adapter, and shows words as they come", async () => {
    const { calls, box, says, ends } = await playground();
    expect(screen.queryByRole("option", { name: "words" })).toBeNull();
    await userEvent.selectOptions(screen.getByLabelText("Model"), "other");
    const adapters = await screen.findByLabelText("Adapter of a run");
    expect([...adapters.querySelectorAll("option")].map((each) => each.value)).toEqual([
      "",
      "replies",
    ]);
    await userEvent.selectOptions(adapters, "replies");
    await userEvent.type(screen.getByLabelText("Instructions"), "be short");
    await userEvent.type(box, "where is it?{Enter}");
    says(event("It is "));
    expect(await screen.findByText("It is")).toBeTruthy();
    says(event("near."));
    says('data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n');
    ends();
    expect(await screen.findByText(/First token after/)).toBeTruthy();
    expect(screen.getByText("It is near.")).toBeTruthy();
    expect(calls.at(-1)?.body).toMatchObject({
      model: "other:replies",
      stream: true,
      temperature: 0.7,
      max_tokens: 256,
      messages: [
        { role: "system", content: "be short" },
        { role: "user", content: "where is it?" },
      ],
    });
  });

  it("goes on with what was said, and forgets it when asked to", async () => {
    const { calls, box, says, ends } = await playground();
    await userEvent.type(box, "one{Enter}");
    says(event("two"));
    ends();
    await screen.findByText(/First token/);
    await userEvent.type(box, "three{Enter}");
    expect(calls.at(-1)?.body).toMatchObject({
      messages: [
        { role: "user", content: "one" },
        { role: "assistant", content: "two" },
        { role: "user", content: "three" },
      ],
    });
    says(event("four"));
    ends();
    await userEvent.click(await screen.findByRole("button", { name: "New conversation" }));
    expect(screen.queryByText("two")).toBeNull();
  });

  it("stops when asked to, and keeps what had come", async () => {
    const { box, says, signals } = await playground();
    await userEvent.type(box, "tell me{Enter}");
    says(event("Once"));
    await screen.findByText("Once");
    await userEvent.click(screen.getByRole("button", { name: "Stop" }));
    expect(signals.at(-1)?.aborted).toBe(true);
    expect(await screen.findByRole("button", { name: "Send" })).toBeTruthy();
    expect(screen.getByText("Once")).toBeTruthy();
    expect(screen.queryByRole("alert")).toBeNull();
  });

  it("gives a question back that was refused", async () => {
    const refused = {
      status: 429,
      body: { error: { message: "over your quota", code: "quota" } },
      headers: { "Retry-After": "7" },
    };
    const { box } = await playground({ "POST /v1/chat/completions": refused });
    await userEvent.type(box, "hello{Enter}");
    expect((await screen.findByRole("alert")).textContent).toContain("over your quota");
    expect((box as HTMLTextAreaElement).value).toBe("hello");
  });

  it("shows an answer as text, whatever is in it", async () => {
    const { box, says, ends } = await playground();
    await userEvent.type(box, "x{Enter}");
    says(event("<img src=x onerror=alert(1)> **bold**"));
    ends();
    expect(await screen.findByText("<img src=x onerror=alert(1)> **bold**")).toBeTruthy();
    expect(document.querySelector("[role=log] img")).toBeNull();
  });

  it("begins a new line with Shift and Enter, and asks nothing of wrong numbers", async () => {
    const { calls, box } = await playground();
    await userEvent.type(box, "a{Shift>}{Enter}{/Shift}b");
    expect((box as HTMLTextAreaElement).value).toBe("a\nb");
    const heat = screen.getByLabelText("Temperature");
    await userEvent.clear(heat);
    await userEvent.type(heat, "3");
    await userEvent.click(screen.getByRole("button", { name: "Send" }));
    expect(screen.getByText("Must be a number from 0 to 2.")).toBeTruthy();
    expect(calls.some((call) => call.path === "/v1/chat/completions")).toBe(false);
  });

  it("lets a caller name a run, whose list it may not read", async () => {
    const { calls, box } = await playground({}, { ...ADMIN, role: "caller" });
    await userEvent.type(screen.getByLabelText("Adapter of a run"), "replies");
    await userEvent.type(box, "x{Enter}");
    expect(calls.at(-1)?.body).toMatchObject({ model: "shop:replies" });
    expect(calls.some((call) => call.path.startsWith("/api/v1/runs"))).toBe(false);
  });

  it("says how a model is served where there is none", async () => {
    window.location.hash = "#/playground";
    fakeApi({ "GET /api/v1/session": { body: ADMIN }, "GET /v1/models": { body: { data: [] } } });
    render(<App />);
    expect(await screen.findByText("No language model is served")).toBeTruthy();
  });
});
