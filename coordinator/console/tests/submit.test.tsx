import { fireEvent, render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { App } from "../src/app";
import { texts } from "../src/i18n";
import { readExamples } from "../src/lib/examples";
import { FIELDS, fieldProblems, jobOf, STARTS, withValue } from "../src/lib/job_form";
import { ADMIN, fakeApi, problem } from "./support/fake_api";

const PROBE = 'text,label\n"hello, you",greeting\nbye,parting\n';

async function form(answers = {}) {
  window.location.hash = "#/runs/_new";
  const calls = fakeApi({
    "GET /api/v1/session": { body: ADMIN },
    "POST /api/v1/runs": { status: 201, body: { run: "tickets" } },
    ...answers,
  });
  render(<App />);
  await screen.findByRole("heading", { name: "New run" });
  return calls;
}

function choose(file: File): void {
  fireEvent.change(screen.getByLabelText("File"), { target: { files: [file] } });
}

function set(label: string, value: string): void {
  fireEvent.change(screen.getByLabelText(label), { target: { value } });
}

async function send(): Promise<void> {
  await userEvent.click(screen.getByRole("button", { name: "Submit the run" }));
}

describe("the form of a new run", () => {
  it("sends exactly what the coordinator takes, and goes to the run", async () => {
    const calls = await form();
    set("Name", "tickets");
    set("Rounds", "3");
    choose(new File([PROBE], "probe.csv"));
    await screen.findByText("2 examples with 2 labels");
    await send();
    await waitFor(() => expect(window.location.hash).toBe("#/runs/tickets"));
    const sent = calls.find((call) => call.method === "POST")?.body as Record<string, unknown>;
    expect(Object.keys(sent).sort()).toEqual(["job", "probe", "seed", "simulation"]);
    expect(sent.probe).toEqual([
      ["hello, you", "greeting", ""],
      ["bye", "parting", ""],
    ]);
    expect(sent.simulation).toBe(false);
    expect(Number.isInteger(sent.seed)).toBe(true);
    expect(sent.job).toEqual({
      name: "tickets",
      task: "text-classification",
      model: {
        base: "sentence-transformers/all-MiniLM-L6-v2",
        trainable: "head",
        initial: "zeros",
        layers: 0,
      },
      training: {
        rounds: 3,
        learning_rate: 10,
        local_steps: 1,
        sample_rate: 1,
        clip_norm: 1,
        proximal_mu: 0,
        examples_cap: 2000,
      },
      privacy: { noise: "local", epsilon: 8, delta: 0.00001 },
      protection: {
        scheme: "public-key",
        min_devices: 16,
        max_devices: 240,
        bits: 12,
        value_range: 0,
      },
      cohort: { devices: 0, patience_s: 60, lease_s: 120, round_timeout_s: 3600 },
      server: { rule: "fedavg", learning_rate: 1 },
      evaluation: { share: 0 },
      answers: { target_error: 0.05 },
    });
  });

  it("sends nothing that is incomplete, marks what is wrong and goes there", async () => {
    const calls = await form();
    set("Rounds", "2.5");
    await send();
    expect(screen.getByText("Enter a whole number")).toBeTruthy();
    expect(screen.getAllByText("Fill this in")).toHaveLength(2);
    await waitFor(() => expect(document.activeElement).toBe(screen.getByLabelText("Name")));
    expect(calls.filter((call) => call.method === "POST")).toEqual([]);
  });

  it("puts what the coordinator refuses beside its field", async () => {
    const detail = "invalid job:\n  - privacy.epsilon: 0.1 is below 0.5\n  - probe: is odd";
    await form({ "POST /api/v1/runs": { status: 422, body: problem(422, detail, "config") } });
    set("Name", "tickets");
    choose(new File([PROBE], "probe.csv"));
    await screen.findByText("2 examples with 2 labels");
    await send();
    expect((await screen.findByText("0.1 is below 0.5")).className).toBe("field-error");
    expect(screen.getByLabelText("ε of the whole run").getAttribute("aria-invalid")).toBe("true");
    expect(screen.getByRole("alert").textContent).toContain("probe: is odd");
  });

  it("asks for what belongs to shared noise, and bars what does not go with it", async () => {
    await form();
    const noise = within(screen.getByRole("group", { name: "Noise" }));
    await userEvent.click(noise.getByRole("radio", { name: /Shared among devices/ }));
    const whom = within(screen.getByRole("group", { name: "Whom ε is about" }));
    expect(whom.getAllByRole("radio")).toHaveLength(2);
    const clear = screen.getByRole<HTMLInputElement>("radio", { name: /In clear/ });
    expect(clear.disabled).toBe(true);
  });

  it("refuses a file that is not UTF-8", async () => {
    await form();
    choose(new File([new Uint8Array([0x74, 0xff])], "probe.csv"));
    expect(await screen.findByText(/not UTF-8/)).toBeTruthy();
  });
});

describe("the values of a job", () => {
  it("go with each other after any choice", () => {
    let values = withValue({ ...STARTS, name: "x" }, "protection.scheme", "clear");
    values = withValue(values, "training.local_steps", "5");
    values = withValue(values, "privacy.noise", "distributed");
    expect(jobOf(values)).toMatchObject({
      training: { local_steps: 1 },
      protection: { scheme: "public-key", bits: 16 },
      privacy: { level: "record" },
    });
    expect(jobOf(withValue(values, "task", "causal-lm"))).toMatchObject({
      model: { trainable: "lora" },
    });
  });

  it("leave out what says nothing", () => {
    const job = jobOf(withValue(STARTS, "privacy.noise", "none"));
    expect(job.privacy).toEqual({ noise: "none" });
    expect(job).not.toHaveProperty("adapter");
    const inside = jobOf(withValue(STARTS, "model.trainable", "lora"));
    expect(inside.adapter).toEqual({
      method: "lora",
      rank: 8,
      alpha: 16,
      layers: 2,
      step_ratio: 0.1,
    });
  });

  it.each([
    ["name", "Ups", "name"],
    ["name", "-a", "name"],
    ["name", "a".repeat(42), "name"],
    ["training.rounds", "", "needed"],
    ["training.rounds", "x", "number"],
    ["training.rounds", "0", "least"],
    ["training.rounds", "10001", "most"],
    ["privacy.epsilon", "0", "above"],
    ["privacy.delta", "1", "below"],
    ["evaluation.share", "1", "below"],
  ])("%s = %j: %s", (path, value, what) => {
    const values = withValue({ ...STARTS, name: "ok" }, path, value);
    expect([...fieldProblems(values)].map(([at, { what }]) => [at, what])).toEqual([[path, what]]);
  });

  it("have a label and an explanation each", () => {
    for (const field of FIELDS) {
      const keys = field.options
        ? field.options.flatMap((option) => [`${option}`, `${option}.about`])
        : ["hint"];
      for (const key of keys) expect(texts).toHaveProperty([`submit.${field.path}.${key}`]);
      expect(texts).toHaveProperty([`submit.${field.path}`]);
    }
  });
});

describe("a file of examples", () => {
  it("is read as CSV with quotes, line breaks in cells and a group", () => {
    const content = '\uFEFFgroup,text,label\r\nde,"a ""b""\nc",1\r\n\r\nen, d ,2\r\n';
    expect(readExamples("x.CSV", content)).toEqual({
      examples: [
        ['a "b"\nc', "1", "de"],
        ["d", "2", "en"],
      ],
      problems: [],
    });
  });

  it("is read as JSON lines, with whole numbers as labels", () => {
    const content = '{"text": "a", "label": 3}\n\n{"text": "b", "label": "x", "group": "g"}\n';
    expect(readExamples("x.jsonl", content).examples).toEqual([
      ["a", "3", ""],
      ["b", "x", "g"],
    ]);
  });

  it("has its problems named by line", () => {
    const content = '{"text": "a"}\n[1]\nnot json\n{"text": " ", "label": "x"}';
    expect(readExamples("x.jsonl", content)).toEqual({
      examples: [],
      problems: [
        { line: 2, what: "object" },
        { line: 3, what: "json" },
        { line: 1, what: "missing", column: "label" },
        { line: 4, what: "empty", column: "text" },
      ].sort((a, b) => a.line - b.line),
    });
    expect(readExamples("x.csv", "text,wrong\na,b\n").problems).toEqual([
      { line: 1, what: "missing", column: "label" },
    ]);
    expect(readExamples("x.csv", 'text,label\n"a,b\n').problems).toContainEqual({
      line: 2,
      what: "quote",
    });
  });
});
