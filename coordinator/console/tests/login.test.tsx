import { render, screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { refusals } from "../src/api/api";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi, problem, STRANGER } from "./support/fake_api";

const PASSWORD = "correct horse battery";
const LINK = { purpose: "invite", name: "grace", role: "operator", expires_at: 2_000_000_000 };

/** Nobody is logged in until the API was told to. */
function strangers(answers: Answers = {}, who: object = STRANGER) {
  let now: object = who;
  return fakeApi({
    "GET /api/v1/session": () => ({ body: now }),
    "POST /api/v1/session": () => {
      now = ADMIN;
      return { body: ADMIN };
    },
    "GET /api/v1/runs": { body: { items: [], next: null } },
    ...answers,
  });
}

describe("logging in", () => {
  it("sends name and password, and shows the first page", async () => {
    const calls = strangers();
    render(<App />);
    await userEvent.type(await screen.findByLabelText("Name"), " ada ");
    await userEvent.type(screen.getByLabelText("Password"), PASSWORD);
    await userEvent.click(screen.getByRole("button", { name: "Log in" }));
    expect(await screen.findByRole("heading", { name: "Fleet" })).toBeTruthy();
    expect(calls.find((call) => call.method === "POST")?.body).toEqual({
      name: "ada",
      password: PASSWORD,
    });
  });

  it("says what is wrong, and stays", async () => {
    const calls = strangers({
      "POST /api/v1/session": { status: 401, body: problem(401, "no") },
    });
    render(<App />);
    await userEvent.type(await screen.findByLabelText("Name"), "ada");
    await userEvent.type(screen.getByLabelText("Password"), "wrong");
    await userEvent.click(screen.getByRole("button", { name: "Log in" }));
    expect((await screen.findByRole("alert")).textContent).toContain("Name or password is wrong.");
    expect(screen.getByLabelText<HTMLInputElement>("Name").value).toBe("ada");
    // A wrong password is no session that has ended: nothing is asked for again.
    expect(calls.filter((call) => call.method === "GET")).toHaveLength(1);
  });

  it("says how long to wait after too many tries", async () => {
    strangers({
      "POST /api/v1/session": {
        status: 429,
        body: problem(429, "too many tries"),
        headers: { "Retry-After": "8" },
      },
    });
    render(<App />);
    await userEvent.type(await screen.findByLabelText("Name"), "ada");
    await userEvent.type(screen.getByLabelText("Password"), "wrong{Enter}");
    expect((await screen.findByRole("alert")).textContent).toContain("Try again in 8 s.");
  });

  it("asks for what is missing and sends nothing", async () => {
    const calls = strangers();
    render(<App />);
    await userEvent.click(await screen.findByRole("button", { name: "Log in" }));
    expect(screen.getAllByText("Fill this in")).toHaveLength(2);
    expect(calls.filter((call) => call.method === "POST")).toEqual([]);
  });

  it("offers the identity provider where there is one, and only there", async () => {
    strangers({}, { ...STRANGER, oidc: true });
    const shown = render(<App />);
    const link = await screen.findByRole("link", { name: "Log in with your organisation" });
    expect(link.getAttribute("href")).toBe("/api/v1/session/oidc");
    shown.unmount();
    strangers();
    render(<App />);
    await screen.findByLabelText("Name");
    expect(screen.queryByRole("link")).toBeNull();
  });

  it("says how the first account is made", async () => {
    strangers({}, { ...STRANGER, first: true });
    render(<App />);
    expect(await screen.findByText("llmos people link")).toBeTruthy();
  });
});

describe("a link", () => {
  it("shows whom it is for, and is spent with a password of enough characters", async () => {
    window.location.hash = "#/login/s3cret";
    const calls = strangers({ "POST /api/v1/session/link": { body: LINK } });
    render(<App />);
    expect(await screen.findByRole("heading", { name: "Welcome, grace" })).toBeTruthy();
    expect(screen.getByLabelText<HTMLInputElement>("Name").readOnly).toBe(true);
    const go = screen.getByRole("button", { name: "Set password and log in" });
    await userEvent.type(screen.getByLabelText("Password"), "short");
    await userEvent.click(go);
    expect(screen.getByText("Use at least 12 characters")).toBeTruthy();
    expect(screen.getByText("The two passwords differ")).toBeTruthy();
    await userEvent.clear(screen.getByLabelText("Password"));
    await userEvent.type(screen.getByLabelText("Password"), PASSWORD);
    await userEvent.type(screen.getByLabelText("The password once more"), PASSWORD);
    await userEvent.click(go);
    expect(await screen.findByRole("heading", { name: "Fleet" })).toBeTruthy();
    expect(calls.filter((call) => call.path === "/api/v1/session" && call.body)).toMatchObject([
      { body: { link: "s3cret", name: "grace", password: PASSWORD } },
    ]);
    expect(window.location.hash).not.toContain("s3cret");
  });

  it("lets the first person choose a name", async () => {
    window.location.hash = "#/login/s3cret";
    const first = { ...LINK, purpose: "first", name: null, role: "admin" };
    const calls = strangers({ "POST /api/v1/session/link": { body: first } });
    render(<App />);
    await userEvent.type(await screen.findByLabelText("Name"), "ada");
    await userEvent.type(screen.getByLabelText("Password"), PASSWORD);
    await userEvent.type(screen.getByLabelText("The password once more"), `${PASSWORD}{Enter}`);
    await waitFor(() =>
      expect(calls.some((call) => (call.body as { name?: string })?.name === "ada")).toBe(true),
    );
  });

  it("that no longer works says so, and how to get another", async () => {
    window.location.hash = "#/login/old";
    strangers({ "POST /api/v1/session/link": { status: 401, body: problem(401, "used") } });
    render(<App />);
    expect(await screen.findByRole("heading", { name: "This link no longer works" })).toBeTruthy();
    expect(screen.getByText("llmos people link")).toBeTruthy();
  });
});

describe("a session that ends", () => {
  it("brings the login page back", async () => {
    let now: object = ADMIN;
    strangers({ "GET /api/v1/session": () => ({ body: now }) });
    render(<App />);
    await screen.findByRole("heading", { name: "Fleet" });
    now = STRANGER;
    refusals.set(refusals.get() + 1);
    expect(await screen.findByRole("button", { name: "Log in" })).toBeTruthy();
  });

  it("hides what a role may not open", async () => {
    strangers({}, { ...ADMIN, role: "device" });
    render(<App />);
    expect(await screen.findByText("There is no such page")).toBeTruthy();
    expect(screen.queryByRole("link", { name: "Fleet" })).toBeNull();
  });
});
