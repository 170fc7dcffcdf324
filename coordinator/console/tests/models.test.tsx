import { render, screen, within } from "@testing-library/react";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { ADMIN, type Answers, fakeApi } from "./support/fake_api";

const IMPORTED = {
  source: "all-MiniLM-L6-v2",
  digest: "d".repeat(64),
  base: "b".repeat(64),
  architecture: "bert",
  layers: 6,
  features: 384,
  quantise: "int8",
  bytes: 23_000_000,
};
const SERVED = { kind: "encoder", state: "ready", reason: "", base: null, stand_in: true };
const MINILM = { name: "mini/lm", served: [SERVED], imported: IMPORTED, damaged: null };
const PASS = { nodes: 400, p50_ms_32: 4.25, p50_ms_128: 12, agreement: 0.985 };

function open(hash: string, answers: Answers) {
  window.location.hash = hash;
  fakeApi({ "GET /api/v1/session": { body: ADMIN }, ...answers });
  render(<App />);
}

const NONE = { body: { items: [], next: null } };

describe("models", () => {
  it("lists what is served and what was released", async () => {
    const release = {
      run: "tickets",
      at: 1_700_000_000,
      manifest: "m",
      adapter: "a".repeat(64),
      accuracy: 0.908,
      devices: 5,
    };
    open("#/models", {
      "GET /api/v1/models": { body: { items: [MINILM], next: null } },
      "GET /api/v1/releases": { body: { items: [release], next: null } },
    });
    const link = await screen.findByRole("link", { name: "mini/lm" });
    const row = link.closest("tr") as HTMLElement;
    expect(within(row).getByText("encoder: ready")).toBeTruthy();
    expect(within(row).getByText("Stand-in for demonstrations")).toBeTruthy();
    expect(within(row).getByText("23 MB")).toBeTruthy();
    const released = (await screen.findByRole("link", { name: "tickets" })).closest("tr");
    expect(released?.textContent).toContain("90.8%");
  });

  it("says how to import one where there is none", async () => {
    open("#/models", { "GET /api/v1/models": NONE, "GET /api/v1/releases": NONE });
    expect(await screen.findByText("No model yet")).toBeTruthy();
    expect(screen.getByText("llmos model import FOLDER")).toBeTruthy();
    expect(await screen.findByText("Nothing was released yet")).toBeTruthy();
  });

  it("shows what each pass bought, in their order", async () => {
    const passes = [
      { name: "export", bytes: 90_000_000, ...PASS },
      { name: "int8", bytes: 23_000_000, ...PASS, p50_ms_32: 1.5 },
    ];
    open("#/models/mini%2Flm", {
      "GET /api/v1/models/mini%2Flm": { body: { ...MINILM, passes } },
    });
    const table = await screen.findByRole("table", { name: "What each pass bought" });
    const rows = within(table).getAllByRole("row").slice(1) as HTMLTableRowElement[];
    expect(rows.map((row) => row.cells[0]?.textContent)).toEqual(["Export", "8-bit weights"]);
    expect(rows[1]?.textContent).toContain("1.5 ms");
    expect(rows[1]?.textContent).toContain("98.5%");
    expect(screen.getByText("d".repeat(64))).toBeTruthy();
  });

  it("says why a model that is damaged or has failed does not answer", async () => {
    const failed = { ...SERVED, state: "failed", reason: "out of memory" };
    open("#/models/shop", {
      "GET /api/v1/models/shop": {
        body: { ...MINILM, name: "shop", served: [failed], damaged: "a file is cut", passes: [] },
      },
    });
    expect(await screen.findByText("a file is cut")).toBeTruthy();
    expect(screen.getByText("out of memory")).toBeTruthy();
    expect(screen.getByText("It was not imported here")).toBeTruthy();
  });
});
