import { act, render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { language } from "../src/lib/settings";
import { ADMIN, type Answers, fakeApi, problem } from "./support/fake_api";
import { FakeSocket } from "./support/fake_socket";

function alarm(id: number, rule: string, subject: { kind: string; name: string }, more = {}) {
  const times = { count: 3, first_at: 1_700_000_000, last_at: 1_700_000_100 };
  const seen = { action: "none", acknowledged_at: null as number | null, acknowledged_by: "" };
  return {
    id,
    rule,
    severity: "warning",
    subject,
    detail: "seen last",
    ...times,
    ...seen,
    ...more,
  };
}

const DEVICE = alarm(4, "device-refused", { kind: "device", name: "kitchen/1" });
const RUN = alarm(
  5,
  "sum-out-of-range",
  { kind: "run", name: "tickets" },
  { severity: "critical" },
);
const KEY = alarm(6, "key-tokens", { kind: "key", name: "shop" }, { action: "quarantined" });
const NEW = alarm(7, "a-new-rule", { kind: "coordinator", name: "" }, { detail: "something" });
const SEEN = alarm(
  2,
  "replays",
  { kind: "device", name: "attic" },
  { acknowledged_at: 1_700_000_200, acknowledged_by: "person:ada" },
);

async function alarms(snapshot: object | null, answers: Answers = {}, role = "operator") {
  window.location.hash = "#/alarms";
  const calls = fakeApi({ "GET /api/v1/session": { body: { ...ADMIN, role } }, ...answers });
  render(<App />);
  await screen.findByRole("heading", { name: "Alarms" });
  if (snapshot) {
    await waitFor(() => FakeSocket.last());
    act(() => FakeSocket.last().open());
    act(() => FakeSocket.last().says({ topic: "alarms", snapshot }));
  }
  return calls;
}

function rows(): string[] {
  const found = within(screen.getByRole("table", { name: "Open" })).getAllByRole("row");
  return found.slice(1).map((row) => row.textContent ?? "");
}

const ALL = { open: 4, alarms: { 4: DEVICE, 5: RUN, 6: KEY, 7: NEW } };

describe("alarms", () => {
  it("explains each, newest first, and leads to where something can be done", async () => {
    await alarms(ALL, {}, "admin");
    const [fresh, key, run, device] = rows();
    expect(fresh).toContain("a-new-rule");
    expect(fresh).toContain("something");
    expect(fresh).toContain("everybody together");
    expect(key).toContain("quarantined by itself");
    expect(run).toContain("critical");
    expect(device).toContain("outdated, broken or hostile");
    const link = (name: string) => screen.getByRole("link", { name }).getAttribute("href");
    expect(link("kitchen/1")).toBe("#/fleet/kitchen%2F1");
    expect(link("tickets")).toBe("#/runs/tickets");
    expect(link("shop")).toBe("#/keys");
  });

  it("leads nobody to a page that the role may not open", async () => {
    await alarms(ALL, {}, "viewer");
    expect(screen.queryByRole("link", { name: "shop" })).toBeNull();
    expect(screen.getByRole("link", { name: "tickets" })).toBeTruthy();
  });

  it("changes as alarms come and go, and counts them in the navigation", async () => {
    await alarms({ open: 0, alarms: {} });
    expect(screen.getByText("Nothing is wrong")).toBeTruthy();
    expect(screen.getAllByRole("link", { name: "Alarms" })).toHaveLength(1);
    const says = (patch: object) => act(() => FakeSocket.last().says({ topic: "alarms", patch }));
    says({ open: 2, alarms: { 4: DEVICE, 5: RUN } });
    expect(rows()).toHaveLength(2);
    expect(screen.getByRole("link", { name: /^Alarms\s*2 open$/ })).toBeTruthy();
    says({ alarms: { 4: { count: 9 } } });
    expect(rows()[1]).toContain("9");
    says({ open: 1, alarms: { 5: null } });
    expect(rows()).toHaveLength(1);
  });

  it("says so when there are more than it shows", async () => {
    await alarms({ open: 140, alarms: { 4: DEVICE } });
    expect(screen.getByText("So many more are open: 139")).toBeTruthy();
  });

  it("acknowledges, and says why not", async () => {
    const path = "POST /api/v1/alarms/4/acknowledge";
    let refuses = true;
    const calls = await alarms(
      { open: 1, alarms: { 4: DEVICE } },
      {
        [path]: () =>
          refuses ? { status: 507, body: problem(507, "the disk is full") } : { body: DEVICE },
      },
    );
    await userEvent.click(screen.getByRole("button", { name: "Acknowledge alarm 4" }));
    expect((await screen.findByRole("alert")).textContent).toContain("the disk is full");
    refuses = false;
    await userEvent.click(screen.getByRole("button", { name: "Acknowledge alarm 4" }));
    await waitFor(() => expect(screen.queryByRole("alert")).toBeNull());
    expect(calls.filter((call) => `${call.method} ${call.path}` === path)).toHaveLength(2);
  });

  it("lets a viewer look, and an auditor without a live feed", async () => {
    await alarms(ALL, {}, "viewer");
    expect(rows()).toHaveLength(4);
    expect(screen.queryByRole("button", { name: /Acknowledge/ })).toBeNull();
  });

  it("shows an auditor what was open when it was asked for", async () => {
    const open = "GET /api/v1/alarms?open=true&limit=100";
    await alarms(null, { [open]: { body: { items: [KEY, DEVICE], next: null } } }, "auditor");
    expect(await screen.findByText("A device is refused")).toBeTruthy();
    expect(rows()).toHaveLength(2);
    expect(screen.getByRole("link", { name: "shop" })).toBeTruthy();
    expect(screen.queryByRole("link", { name: "kitchen/1" })).toBeNull();
    expect(FakeSocket.made).toHaveLength(0);
  });

  it("shows those that were acknowledged too when asked to, page by page", async () => {
    const every = "GET /api/v1/alarms?limit=100";
    await alarms(
      { open: 0, alarms: {} },
      {
        [every]: { body: { items: [DEVICE], next: "more" } },
        [`${every}&cursor=more`]: { body: { items: [SEEN], next: null } },
      },
    );
    await userEvent.click(screen.getByLabelText("Show those that were acknowledged too"));
    await userEvent.click(await screen.findByRole("button", { name: "Show more" }));
    expect(await screen.findByText("acknowledged by person:ada")).toBeTruthy();
    const table = screen.getByRole("table", { name: "All alarms" });
    expect(within(table).getAllByRole("button", { name: /^Acknowledge alarm/ })).toHaveLength(1);
  });

  it("speaks Chinese too", async () => {
    await alarms({ open: 1, alarms: { 4: DEVICE } });
    act(() => language.set("zh"));
    expect(screen.getByText("设备被拒绝")).toBeTruthy();
    expect(screen.getByRole("button", { name: "确认警报 4" })).toBeTruthy();
    act(() => language.set("en"));
  });
});
