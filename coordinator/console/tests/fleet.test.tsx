import { act, render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, fakeApi } from "./support/fake_api";
import { FakeSocket } from "./support/fake_socket";

const KITCHEN = {
  name: "kitchen",
  public_key: "llmos-key AAAA",
  fingerprint: "SQ3A-7KXM-P2",
  joined_at: 1_700_000_000,
  state: "idle",
  standing: "trusted",
  version: "0.1.0",
  condition: "",
  budget_left: 3.25,
};
const PATH = "/api/v1/devices/kitchen";
const VIEW = { ...KITCHEN, heard_at: null, answers_with: null, runs: [] };

async function fleet(snapshot: object, who: object = ADMIN, answers = {}) {
  const calls = fakeApi({ "GET /api/v1/session": { body: who }, ...answers });
  render(<App />);
  await screen.findByRole("heading", { name: "Fleet" });
  await waitFor(() => FakeSocket.last());
  act(() => FakeSocket.last().open());
  act(() => FakeSocket.last().says({ topic: "fleet", snapshot }));
  return calls;
}

describe("the fleet", () => {
  it("says what to do where no device has joined", async () => {
    await fleet({ at: 1, counts: {}, devices: {} });
    expect(screen.getByText("No device has joined yet")).toBeTruthy();
    expect(screen.getByRole("button", { name: "Copy llmos device token" })).toBeTruthy();
  });

  it("follows devices as they come, change and go", async () => {
    await fleet({ at: 1, counts: { idle: 1 }, devices: { kitchen: KITCHEN } });
    const row = () => screen.getByRole("link", { name: "kitchen" }).closest("tr") as HTMLElement;
    expect(within(row()).getByText("idle")).toBeTruthy();
    const patch = {
      counts: { idle: null, training: 1 },
      devices: { kitchen: { state: "training" } },
    };
    act(() => FakeSocket.last().says({ topic: "fleet", patch }));
    expect(within(row()).getByText("training")).toBeTruthy();
    act(() => FakeSocket.last().says({ topic: "fleet", patch: { devices: { kitchen: null } } }));
    expect(screen.queryByRole("link", { name: "kitchen" })).toBeNull();
  });

  it("tells what devices told of themselves, and what they did not", async () => {
    const spent = { ...KITCHEN, name: "attic", condition: "budget-spent", budget_left: 0 };
    const { version: _v, condition: _c, budget_left: _b, ...silent } = KITCHEN;
    const odd = { ...KITCHEN, name: "cellar", condition: "a-new-code" };
    const devices = { kitchen: KITCHEN, attic: spent, garage: { ...silent, name: "garage" } };
    await fleet({ at: 1, counts: { idle: 4 }, devices: { ...devices, cellar: odd } });
    const row = (name: string) =>
      screen.getByRole("link", { name }).closest("tr")?.textContent ?? "";
    expect(row("kitchen")).toContain("takes part3.250.1.0");
    expect(row("attic")).toContain("budget spent0");
    expect(row("garage")).toContain("not toldnot toldnot told");
    expect(row("cellar")).toContain("a-new-code");
  });

  it("shows a new token once, in the command that spends it", async () => {
    const token = { token: "once.SQ3A", expires_at: 2_000_000_000 };
    await fleet({ at: 1, counts: {}, devices: {} }, ADMIN, {
      "POST /api/v1/devices/tokens": { status: 201, body: token },
    });
    await userEvent.click(screen.getByRole("button", { name: "Join a device" }));
    expect(await screen.findByText(/llmos edge join .* --token once.SQ3A/)).toBeTruthy();
    await userEvent.click(screen.getByRole("button", { name: "Done" }));
    expect(screen.queryByText(/once.SQ3A/)).toBeNull();
  });

  it("makes no tokens for a viewer", async () => {
    await fleet({ at: 1, counts: {}, devices: {} }, { ...ADMIN, role: "viewer" });
    expect(screen.queryByRole("button", { name: "Join a device" })).toBeNull();
  });
});

describe("a device", () => {
  async function device(view: object, who: object, answers = {}) {
    window.location.hash = "#/fleet/kitchen";
    const calls = fakeApi({
      "GET /api/v1/session": { body: who },
      [`GET ${PATH}`]: { body: view },
      ...answers,
    });
    render(<App />);
    await screen.findByText("SQ3A-7KXM-P2");
    return calls;
  }

  it("is quarantined after asking, with a reason", async () => {
    const calls = await device(
      VIEW,
      { ...ADMIN, role: "operator" },
      {
        [`POST ${PATH}/quarantine`]: { body: {} },
      },
    );
    expect(screen.queryByRole("button", { name: "Revoke" })).toBeNull();
    await userEvent.click(screen.getByRole("button", { name: "Quarantine" }));
    const dialog = screen.getByRole("dialog", { name: "Quarantine kitchen?" });
    expect(dialog.textContent).toContain("not invited to rounds any more");
    await userEvent.type(within(dialog).getByLabelText("Reason"), "odd updates");
    await userEvent.click(within(dialog).getByRole("button", { name: "Quarantine" }));
    expect(await screen.findByText("kitchen is quarantined")).toBeTruthy();
    expect(calls.find((call) => call.method === "POST")).toMatchObject({
      path: `${PATH}/quarantine`,
      body: { reason: "odd updates" },
    });
  });

  it("is let out, or revoked for good, by an administrator", async () => {
    const calls = await device({ ...VIEW, standing: "quarantined" }, ADMIN, {
      [`DELETE ${PATH}/quarantine`]: { status: 204 },
      [`DELETE ${PATH}`]: { status: 204 },
    });
    await userEvent.click(screen.getByRole("button", { name: "Let out of quarantine" }));
    await userEvent.click(
      within(screen.getByRole("dialog")).getByRole("button", { name: "Let out of quarantine" }),
    );
    await screen.findByText("kitchen is trusted again");
    await userEvent.click(screen.getByRole("button", { name: "Revoke" }));
    const dialog = screen.getByRole("dialog", { name: "Revoke kitchen for good?" });
    await userEvent.click(within(dialog).getByRole("button", { name: "Cancel" }));
    expect(calls.filter((call) => call.method === "DELETE").map((call) => call.path)).toEqual([
      `${PATH}/quarantine`,
    ]);
  });

  it("shows how it took part, with what it said when it declined", async () => {
    const runs = [
      { run: "tickets", invited: 3, took_part: 2, declined: [[2, "privacy.budget", "over 10"]] },
    ];
    await device({ ...VIEW, runs }, ADMIN);
    expect(screen.getByText("Round 2: over 10")).toBeTruthy();
    expect(screen.getByRole("link", { name: "tickets" }).getAttribute("href")).toBe(
      "#/runs/tickets",
    );
  });
});
