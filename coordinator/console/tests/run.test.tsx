import { act, render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { dropped } from "../src/pages/run";
import { ADMIN, fakeApi, problem } from "./support/fake_api";
import { FakeSocket } from "./support/fake_socket";
import { RUN_NOW, round } from "./support/sample_run";

async function opened(who: object = ADMIN, answers = {}) {
  window.location.hash = "#/runs/tickets";
  const calls = fakeApi({ "GET /api/v1/session": { body: who }, ...answers });
  render(<App />);
  await screen.findByRole("heading", { name: "tickets" });
  await waitFor(() => FakeSocket.last());
  act(() => FakeSocket.last().open());
  expect(FakeSocket.last().watched).toEqual(["alarms", "run/tickets"]);
  return calls;
}

function says(frame: object): void {
  act(() => FakeSocket.last().says({ topic: "run/tickets", ...frame }));
}

function stat(name: string): string | null | undefined {
  const term = screen.getAllByText(name).find((each) => each.tagName === "DT");
  return term?.nextElementSibling?.textContent;
}

describe("the page of a run", () => {
  it("shows the round, and what patches change in it", async () => {
    await opened();
    says({ snapshot: RUN_NOW });
    expect(screen.getByText("9 of 16 updates are in")).toBeTruthy();
    expect(stat("ε spent")).toBe("1.5of 8 planned");
    says({
      patch: {
        summary: { accuracy: { "": 0.625 } },
        now: { updates: 12 },
        privacy: { epsilon: { spent: 2 } },
      },
    });
    expect(screen.getByText("12 of 16 updates are in")).toBeTruthy();
    expect(stat("Accuracy")).toContain("62.5%");
    expect(stat("ε spent")).toBe("2of 8 planned");
  });

  it("draws a round as soon as it has ended", async () => {
    await opened();
    says({ snapshot: RUN_NOW });
    const table = () => screen.getByRole("table", { name: "Accuracy by round", hidden: true });
    expect(within(table()).getAllByRole("row", { hidden: true })).toHaveLength(2);
    says({ patch: { rounds: { "2": { state: "applied", accuracy: { "": 0.75 } } } } });
    const rows = within(table()).getAllByRole("row", { hidden: true });
    expect(rows.map((row) => row.textContent)).toEqual(["RoundProbe set", "150.0%", "275.0%"]);
  });

  it("counts who dropped out: invited, and neither declined nor reported", () => {
    expect(dropped(round(1))).toBe(1);
    expect(dropped(round(1, { reported: 16 }))).toBe(0);
    expect(dropped(round(1, { reported: 0, declined: {} }))).toBe(16);
  });

  it("shows who could see what, what it cost, and which checks held", async () => {
    await opened();
    says({ snapshot: RUN_NOW });
    const card = screen.getByRole("region", { name: "Privacy card" });
    const coordinator = within(card).getByText("Coordinator").closest("tr") as HTMLElement;
    expect(within(coordinator).getAllByRole("listitem").length).toBe(4);
    expect(coordinator.textContent).toContain("encrypted updates");
    const epsilon = within(card).getByRole("progressbar");
    expect(epsilon.getAttribute("aria-valuenow")).toBe("1.5");
    expect(epsilon.getAttribute("aria-valuemax")).toBe("8");
    expect(within(card).getByText("3.4 MB")).toBeTruthy();
    expect(within(card).getByText("yes")).toBeTruthy();
    expect(within(card).getByText("no")).toBeTruthy();
  });

  it("has words for every code of the privacy card", async () => {
    await opened();
    says({ snapshot: RUN_NOW });
    const card = screen.getByRole("region", { name: "Privacy card" });
    expect(card.textContent).not.toMatch(/[a-z]_[a-z]/);
  });

  it("says that nothing bounds ε where nothing is noised", async () => {
    await opened();
    const epsilon = { ...RUN_NOW.privacy?.epsilon, planned: null, spent: null };
    says({
      snapshot: {
        ...RUN_NOW,
        summary: { ...RUN_NOW.summary, epsilon: null },
        privacy: { ...RUN_NOW.privacy, epsilon },
      },
    });
    expect(stat("ε spent")).toBe("∞");
    expect(screen.getByText("no bound: nothing is noised")).toBeTruthy();
  });

  it("stops the run after asking, with the reason", async () => {
    const path = "/api/v1/runs/tickets/stop";
    const calls = await opened(ADMIN, { [`POST ${path}`]: { status: 202, body: {} } });
    says({ snapshot: RUN_NOW });
    await userEvent.click(screen.getByRole("button", { name: "Stop the run" }));
    expect(calls.some((call) => call.path === path)).toBe(false);
    const dialog = screen.getByRole("dialog", { name: "Stop tickets?" });
    await userEvent.type(within(dialog).getByLabelText("Reason"), "wrong data");
    await userEvent.click(within(dialog).getByRole("button", { name: "Stop the run" }));
    expect(await screen.findByText("tickets is being stopped")).toBeTruthy();
    expect(calls.find((call) => call.path === path)?.body).toEqual({ reason: "wrong data" });
    expect(screen.queryByRole("dialog")).toBeNull();
  });

  it("keeps the dialog open where stopping is refused, and says why", async () => {
    const path = "/api/v1/runs/tickets/stop";
    await opened(ADMIN, { [`POST ${path}`]: { status: 409, body: problem(409, "it is over") } });
    says({ snapshot: RUN_NOW });
    await userEvent.click(screen.getByRole("button", { name: "Stop the run" }));
    const dialog = screen.getByRole("dialog");
    await userEvent.click(within(dialog).getByRole("button", { name: "Stop the run" }));
    expect((await within(dialog).findByRole("alert")).textContent).toBe("it is over");
  });

  it("offers no stop to a viewer, and none when it is over", async () => {
    await opened({ ...ADMIN, role: "viewer" });
    says({ snapshot: RUN_NOW });
    expect(screen.queryByRole("button", { name: "Stop the run" })).toBeNull();
    says({ patch: { summary: { state: "failed", reason: "too few devices" } } });
    expect(screen.getByText("too few devices")).toBeTruthy();
    expect(screen.queryByText("Round 2 now")).toBeNull();
  });

  it("says that there is no such run", async () => {
    await opened();
    says({ problem: { detail: "no run 'tickets'" } });
    expect(screen.getByText("no run 'tickets'")).toBeTruthy();
  });
});
