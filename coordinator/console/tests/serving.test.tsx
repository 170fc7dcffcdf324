import { act, render, screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it, vi } from "vitest";
import { App } from "../src/app";
import { ADMIN, fakeApi } from "./support/fake_api";
import { FakeSocket } from "./support/fake_socket";

const NOW = {
  state: "ready",
  reason: "",
  slots: 8,
  active: 3,
  queue: 2,
  requests: 41,
  prompt_tokens: 900,
  completion_tokens: 300,
  tokens_per_s: 12.5,
  first_token_s: { p50: 0.25, p95: 1.5 },
  cache_hits: 1,
  cache_lookups: 4,
};
const USE = { requests: 7, prompt_tokens: 1234, cached_tokens: 5, completion_tokens: 99 };

async function serving(snapshot: object) {
  window.location.hash = "#/serving";
  const calls = fakeApi({
    "GET /api/v1/session": { body: ADMIN },
    "GET /api/v1/usage?by=key": { body: { items: [{ name: "app", ...USE }], next: null } },
    "GET /api/v1/usage?by=day": { body: { items: [{ name: "2026-11-28", ...USE }], next: null } },
  });
  render(<App />);
  await screen.findByRole("heading", { name: "Serving" });
  await waitFor(() => FakeSocket.last());
  act(() => FakeSocket.last().open());
  act(() => FakeSocket.last().says({ topic: "serving", snapshot }));
  return calls;
}

function stat(name: string): string {
  return screen.getByText(name, { selector: "dt" }).nextElementSibling?.textContent ?? "";
}

describe("serving", () => {
  it("shows what waits and how fast it goes, as it changes", async () => {
    await serving({ models: { shop: NOW } });
    expect(FakeSocket.last().watched).toEqual(["alarms", "serving"]);
    expect(stat("At work")).toBe("3 of 8");
    expect(stat("Waiting")).toBe("2");
    expect(stat("First token, median")).toContain("0.25 s");
    expect(stat("Answers from the cache")).toContain("25");
    const patch = { models: { shop: { queue: 0, state: "failed", reason: "it died" } } };
    act(() => FakeSocket.last().says({ topic: "serving", patch }));
    expect(stat("Waiting")).toBe("0");
    expect(screen.getByText("it died")).toBeTruthy();
  });

  it("draws what was while nothing changes too", async () => {
    vi.useFakeTimers({ shouldAdvanceTime: true });
    try {
      await serving({ models: { shop: NOW } });
      await act(() => vi.advanceTimersByTimeAsync(6500));
      const rows = screen.getByRole("table", { name: "Tokens a second", hidden: true });
      expect(rows.querySelectorAll("tbody tr")).toHaveLength(4);
    } finally {
      vi.useRealTimers();
    }
  });

  it("adds up what was served by key or by day", async () => {
    const calls = await serving({ models: {} });
    expect(screen.getByText("No language model is served")).toBeTruthy();
    expect(await screen.findByText("app")).toBeTruthy();
    expect(screen.getByText("1,234")).toBeTruthy();
    await userEvent.selectOptions(screen.getByLabelText("Add up by"), "day");
    expect(await screen.findByText("2026-11-28")).toBeTruthy();
    expect(calls.at(-1)?.path).toBe("/api/v1/usage?by=day");
  });
});
