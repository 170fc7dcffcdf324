import { render, screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi } from "./support/fake_api";

const ADA = { name: "ada", role: "admin", state: "active", created_at: 1, last_login_at: 2 };
const BEN = { ...ADA, name: "ben.o@x", role: "viewer", state: "invited", last_login_at: null };
const LINK = { name: "ben.o@x", role: "viewer", link: "one/time", expires_at: 2_000_000_000 };

async function people(answers: Answers = {}, who: object = ADMIN) {
  window.location.hash = "#/people";
  const calls = fakeApi({
    "GET /api/v1/session": { body: who },
    "GET /api/v1/people?limit=200": { body: { items: [ADA, BEN], next: null } },
    ...answers,
  });
  render(<App />);
  await screen.findByText("ben.o@x");
  return calls;
}

describe("people", () => {
  it("are invited by a link that stands behind the # and is shown once", async () => {
    const calls = await people({ "POST /api/v1/people": { status: 201, body: LINK } });
    await userEvent.click(screen.getByRole("button", { name: "Invite somebody" }));
    const dialog = screen.getByRole("dialog", { name: "Invite somebody" });
    await userEvent.type(within(dialog).getByLabelText("Name"), "ben.o@x");
    await userEvent.selectOptions(within(dialog).getByLabelText("Role"), "operator");
    expect(dialog.textContent).toContain("May submit and stop runs");
    await userEvent.click(within(dialog).getByRole("button", { name: "Invite somebody" }));
    const link = await screen.findByText(/#\/login\//);
    const [before, behind] = (link.textContent ?? "").split("#");
    expect(before).not.toContain("one");
    expect(behind).toBe("/login/one%2Ftime");
    expect(calls.find((call) => call.method === "POST")?.body).toEqual({
      name: "ben.o@x",
      role: "operator",
    });
    await userEvent.click(screen.getByRole("button", { name: "I have kept it" }));
    expect(document.body.textContent).not.toContain("one%2Ftime");
  });

  it("get another role at once", async () => {
    const calls = await people({ "PUT /api/v1/people/ben.o%40x/role": { body: {} } });
    await userEvent.selectOptions(screen.getByLabelText("Role of ben.o@x"), "auditor");
    expect(await screen.findByText("ben.o@x is now: auditor")).toBeTruthy();
    expect(calls.find((call) => call.method === "PUT")?.body).toEqual({ role: "auditor" });
  });

  it("are disabled after asking, but never oneself", async () => {
    const calls = await people({ "DELETE /api/v1/people/ben.o%40x": { status: 204 } });
    expect(screen.queryByLabelText("Role of ada")).toBeNull();
    expect(screen.queryByRole("button", { name: "Disable the account of ada?" })).toBeNull();
    await userEvent.click(screen.getByRole("button", { name: "Disable the account of ben.o@x?" }));
    expect(calls.some((call) => call.method === "DELETE")).toBe(false);
    await userEvent.click(
      within(screen.getByRole("dialog")).getByRole("button", { name: "Disable" }),
    );
    expect(await screen.findByText("The account of ben.o@x is disabled")).toBeTruthy();
  });

  it("get a new link when the last was lost", async () => {
    await people({ "POST /api/v1/people/ben.o%40x/link": { status: 201, body: LINK } });
    await userEvent.click(screen.getByRole("button", { name: "New link: ben.o@x" }));
    expect(await screen.findByText(/#\/login\/one%2Ftime/)).toBeTruthy();
  });

  it("can be looked at by an auditor, who changes nothing", async () => {
    await people({}, { ...ADMIN, name: "aud", role: "auditor" });
    expect(screen.queryByRole("button", { name: "Invite somebody" })).toBeNull();
    expect(screen.queryByLabelText("Role of ben.o@x")).toBeNull();
  });
});
