import { render, screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, fakeApi } from "./support/fake_api";

function record(number: number, action: string, subject: string, facts: object = {}) {
  const hash = String(number).repeat(64).slice(0, 64);
  return { number, at: 1_700_000_000, actor: "ada", action, subject, facts, previous: "", hash };
}

const FIRST = [
  record(12, "key-made", "till", { begins: "llmos_abcdef" }),
  record(11, "a-new-action", "x"),
];
const SECOND = [record(10, "run-submitted", "tickets")];
const PATH = "GET /api/v1/audit?order=newest&limit=100";

async function audit() {
  window.location.hash = "#/audit";
  fakeApi({
    "GET /api/v1/session": { body: { ...ADMIN, role: "auditor" } },
    [PATH]: { body: { items: FIRST, next: "more" } },
    [`${PATH}&cursor=more`]: { body: { items: SECOND, next: null } },
  });
  render(<App />);
  await screen.findByText("Key made");
}

function subjects(): (string | undefined)[] {
  const rows = within(screen.getByRole("table", { name: "Audit log" })).getAllByRole("row");
  return (rows.slice(1) as HTMLTableRowElement[]).map((row) => row.cells[4]?.textContent ?? "");
}

describe("the audit log", () => {
  it("says in words what was done, newest first, and more of it when asked for", async () => {
    await audit();
    expect(subjects()).toEqual(["till", "x"]);
    expect(screen.getByText("a-new-action")).toBeTruthy();
    await userEvent.click(screen.getByRole("button", { name: "Show more" }));
    expect(await screen.findByText("Run submitted")).toBeTruthy();
    expect(subjects()).toEqual(["till", "x", "tickets"]);
    expect(screen.queryByRole("button", { name: "Show more" })).toBeNull();
  });

  it("finds every word anywhere in a record, in the reader's words too", async () => {
    await audit();
    const search = screen.getByLabelText("Find in what is shown");
    await userEvent.type(search, "MADE abcdef");
    expect(subjects()).toEqual(["till"]);
    await userEvent.clear(search);
    await userEvent.type(search, "made x");
    expect(screen.getByText("No record is like that")).toBeTruthy();
  });
});
