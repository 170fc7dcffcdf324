import { render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi, problem } from "./support/fake_api";

const KEY = {
  name: "app",
  prefix: "llmos_abcdef",
  role: "caller",
  models: ["shop*"],
  tasks: [],
  collections: [],
  created_at: 1_700_000_000,
  expires_at: null,
  revoked_at: null,
  quarantined_at: null,
  priority: 2,
  tokens_per_minute: 5000,
  public_cache: false,
  former_ends_at: null,
};
const OLD = [
  { ...KEY, name: "gone", revoked_at: 1_700_000_001 },
  { ...KEY, name: "over", expires_at: 1_700_000_001 },
];
const LIST = "GET /api/v1/keys?limit=200";

async function keys(answers: Answers = {}, who: object = ADMIN) {
  window.location.hash = "#/keys";
  const calls = fakeApi({
    "GET /api/v1/session": { body: who },
    [LIST]: { body: { items: [KEY, ...OLD], next: null } },
    ...answers,
  });
  render(<App />);
  await screen.findByRole("heading", { name: "Keys" });
  await screen.findByText("app");
  return calls;
}

describe("keys", () => {
  it("shows those that open something, and the others when asked for", async () => {
    await keys();
    expect(screen.queryByText("gone")).toBeNull();
    const row = screen.getByText("app").closest("tr") as HTMLElement;
    expect(row.textContent).toContain("5,000 tokens a minute, priority 2");
    expect(row.textContent).toContain("shop*");
    await userEvent.click(screen.getByLabelText("Show revoked and expired keys too"));
    const gone = screen.getByText("gone").closest("tr") as HTMLElement;
    expect(within(gone).getByText("revoked")).toBeTruthy();
    expect(within(gone).queryByRole("button")).toBeNull();
    expect(screen.getByText("expired")).toBeTruthy();
  });

  it("shows a new secret once, and nowhere when the window was closed", async () => {
    const made = { ...KEY, name: "till", key: "llmos_the-secret-itself" };
    const calls = await keys({ "POST /api/v1/keys": { status: 201, body: made } });
    await userEvent.click(screen.getByRole("button", { name: "New key" }));
    await userEvent.type(screen.getByLabelText("Name"), "till");
    await userEvent.clear(screen.getByLabelText("Days that it is valid"));
    await userEvent.click(screen.getByText("Narrow it further"));
    await userEvent.type(screen.getByLabelText("Only these models"), " shop , words*,");
    await userEvent.click(screen.getByRole("button", { name: "Make the key" }));
    expect(await screen.findByText("llmos_the-secret-itself")).toBeTruthy();
    expect(calls.find((call) => call.method === "POST")?.body).toEqual({
      name: "till",
      role: "caller",
      days: null,
      models: ["shop", "words*"],
      tasks: [],
      collections: [],
      tokens_per_minute: 0,
      priority: 0,
    });
    await userEvent.click(screen.getByRole("button", { name: "I have kept it" }));
    expect(document.body.textContent).not.toContain("the-secret-itself");
  });

  it("asks for nothing with numbers that cannot be, and says which", async () => {
    const calls = await keys();
    await userEvent.click(screen.getByRole("button", { name: "New key" }));
    await userEvent.type(screen.getByLabelText("Name"), "x");
    const days = screen.getByLabelText("Days that it is valid");
    await userEvent.clear(days);
    await userEvent.type(days, "-1");
    await userEvent.type(screen.getByLabelText("Priority"), "99");
    await userEvent.click(screen.getByRole("button", { name: "Make the key" }));
    expect(days.getAttribute("aria-invalid")).toBe("true");
    expect(screen.getByText("Must be a whole number from -10 to 10.")).toBeTruthy();
    expect(calls.some((call) => call.method === "POST")).toBe(false);
  });

  it("says why the coordinator refused, and keeps what was typed", async () => {
    const refused = { status: 409, body: problem(409, "there is or was a key called app") };
    await keys({ "POST /api/v1/keys": refused });
    await userEvent.click(screen.getByRole("button", { name: "New key" }));
    await userEvent.type(screen.getByLabelText("Name"), "app");
    await userEvent.click(screen.getByRole("button", { name: "Make the key" }));
    expect((await screen.findByRole("alert")).textContent).toContain("there is or was");
    expect((screen.getByLabelText("Name") as HTMLInputElement).value).toBe("app");
  });

  it("revokes after asking", async () => {
    const calls = await keys({ "DELETE /api/v1/keys/app": { body: { name: "app" } } });
    await userEvent.click(screen.getByRole("button", { name: "Revoke app?" }));
    const dialog = screen.getByRole("dialog", { name: "Revoke app?" });
    await userEvent.click(within(dialog).getByRole("button", { name: "Cancel" }));
    expect(calls.some((call) => call.method === "DELETE")).toBe(false);
    await userEvent.click(screen.getByRole("button", { name: "Revoke app?" }));
    await userEvent.click(
      within(screen.getByRole("dialog")).getByRole("button", { name: "Revoke" }),
    );
    expect(await screen.findByText("app is revoked")).toBeTruthy();
    await waitFor(() => {
      expect(calls.filter((call) => `${call.method} ${call.path}` === LIST)).toHaveLength(2);
    });
  });

  it("puts into quarantine with a reason, and lets out again", async () => {
    let quarantined: number | null = null;
    const calls = await keys({
      [LIST]: () => ({ body: { items: [{ ...KEY, quarantined_at: quarantined }], next: null } }),
      "POST /api/v1/keys/app/quarantine": () => {
        quarantined = 1_700_000_000;
        return { body: { name: "app" } };
      },
      "DELETE /api/v1/keys/app/quarantine": () => {
        quarantined = null;
        return { body: { name: "app" } };
      },
    });
    await userEvent.click(screen.getByRole("button", { name: "Quarantine app?" }));
    await userEvent.type(screen.getByLabelText("Why"), " odd ");
    const confirm = async (name: string) =>
      userEvent.click(within(screen.getByRole("dialog")).getByRole("button", { name }));
    await confirm("Quarantine");
    expect(await screen.findByText("in quarantine")).toBeTruthy();
    expect(calls.find((call) => call.method === "POST")?.body).toEqual({ reason: "odd" });
    expect(screen.getByRole("button", { name: "A new secret for app" })).toBeTruthy();
    expect(screen.getByRole("button", { name: "Revoke app?" })).toBeTruthy();
    await userEvent.click(screen.getByRole("button", { name: "Let app out of quarantine?" }));
    await confirm("Let out");
    expect(await screen.findByRole("button", { name: "Quarantine app?" })).toBeTruthy();
    expect(await screen.findByText("active")).toBeTruthy();
  });

  it("rotates with an overlap, and shows the new secret", async () => {
    const calls = await keys({
      "POST /api/v1/keys/app/rotate": { body: { ...KEY, key: "llmos_another" } },
    });
    await userEvent.click(screen.getByRole("button", { name: "A new secret for app" }));
    const hours = screen.getByLabelText("Hours that the old secret works on");
    await userEvent.clear(hours);
    await userEvent.type(hours, "1.5");
    await userEvent.click(
      within(screen.getByRole("dialog")).getByRole("button", { name: "Rotate" }),
    );
    expect(await screen.findByText("llmos_another")).toBeTruthy();
    expect(calls.find((call) => call.method === "POST")?.body).toEqual({ overlap_hours: 1.5 });
  });

  it("lets an auditor look, and nothing else", async () => {
    await keys({}, { ...ADMIN, role: "auditor" });
    expect(screen.queryByRole("button", { name: "New key" })).toBeNull();
    expect(screen.queryByRole("button", { name: /Revoke/ })).toBeNull();
  });
});
