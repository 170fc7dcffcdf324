import { render, screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi, problem } from "./support/fake_api";

const PUT = "PUT /api/v1/session/password";

async function dialog(answers: Answers) {
  window.location.hash = "#/keys";
  const calls = fakeApi({
    "GET /api/v1/session": { body: ADMIN },
    "GET /api/v1/keys?limit=200": { body: { items: [], next: null } },
    ...answers,
  });
  render(<App />);
  const [first] = await screen.findAllByRole("button", { name: "Change password" });
  await userEvent.click(first as HTMLElement);
  const shown = screen.getByRole("dialog", { name: "Change password" });
  const type = async (label: string, text: string) => {
    const field = within(shown).getByLabelText(label);
    await userEvent.clear(field);
    if (text) await userEvent.type(field, text);
  };
  const go = () => userEvent.click(within(shown).getByRole("button", { name: "Change password" }));
  return { calls, shown, type, go };
}

describe("one's own password", () => {
  it("is changed with the present one", async () => {
    const { calls, type, go } = await dialog({ [PUT]: { status: 204 } });
    await type("Present password", "the old sentence");
    await type("New password", "another sentence");
    await type("The password once more", "another sentence");
    await go();
    expect(await screen.findByText("The password is changed")).toBeTruthy();
    expect(screen.queryByRole("dialog")).toBeNull();
    expect(calls.find((call) => call.method === "PUT")?.body).toEqual({
      old: "the old sentence",
      new: "another sentence",
    });
  });

  it("is not sent when it is too short or differs", async () => {
    const { calls, shown, type, go } = await dialog({});
    await type("Present password", "the old sentence");
    await type("New password", "short");
    await type("The password once more", "shorter");
    await go();
    expect(shown.textContent).toContain("Use at least 12 characters");
    expect(shown.textContent).toContain("The two passwords differ");
    expect(calls.some((call) => call.method === "PUT")).toBe(false);
  });

  it("stays where the present one is wrong, and says so", async () => {
    const refused = { status: 403, body: problem(403, "the old password is wrong") };
    const { type, go } = await dialog({ [PUT]: refused });
    await type("Present password", "not this");
    await type("New password", "another sentence");
    await type("The password once more", "another sentence");
    await go();
    expect((await screen.findByRole("alert")).textContent).toContain("the old password is wrong");
  });
});
