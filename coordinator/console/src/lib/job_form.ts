/** The fields of a job (shared/job.py) as a form has them: what they start as, and what they may be. */

export type Values = Readonly<Record<string, string>>;

export interface JobField {
  /** As a job spells it: `training.rounds`. */
  path: string;
  kind: "text" | "integer" | "number" | "choice";
  start: string;
  least?: number;
  most?: number;
  /** `least` or `most` itself is not allowed. */
  open?: "least" | "most" | "both";
  options?: readonly string[];
  /** Options that go with nothing that is chosen elsewhere. */
  barred?: (values: Values) => readonly string[];
  /** Whether it says anything, as the others are; what says nothing is not sent. */
  matters?: (values: Values) => boolean;
  /** Shown on demand. */
  rare?: boolean;
}

export interface JobSection {
  id: "basics" | "training" | "privacy" | "protection" | "cohort" | "server" | "evaluation";
  fields: readonly JobField[];
}

const distributed = (values: Values) => values["privacy.noise"] === "distributed";
const noised = (values: Values) => values["privacy.noise"] !== "none";
const ofDevices = (values: Values) => distributed(values) && values["privacy.level"] === "device";
const robust = (values: Values) =>
  ["median", "trimmed-mean", "multikrum"].includes(values["server.rule"] ?? "");
const adaptive = (values: Values) => values["server.rule"] === "fedadam";
const inside = (values: Values) => values["model.trainable"] === "lora";
const causal = (values: Values) => values.task === "causal-lm";

export const SECTIONS: readonly JobSection[] = [
  {
    id: "basics",
    fields: [
      { path: "name", kind: "text", start: "" },
      {
        path: "task",
        kind: "choice",
        start: "text-classification",
        options: ["text-classification", "causal-lm"],
      },
      {
        path: "model.base",
        kind: "text",
        start: "sentence-transformers/all-MiniLM-L6-v2",
      },
      {
        path: "model.trainable",
        kind: "choice",
        start: "head",
        options: ["head", "lora"],
        barred: (values) => (causal(values) ? ["head"] : []),
      },
      {
        path: "model.initial",
        kind: "choice",
        start: "zeros",
        options: ["zeros", "labels"],
        matters: (values) => !causal(values),
      },
      {
        path: "adapter.method",
        kind: "choice",
        start: "lora",
        options: ["lora", "rslora", "bottleneck"],
        matters: inside,
      },
      {
        path: "adapter.rank",
        kind: "integer",
        start: "8",
        least: 1,
        most: 1024,
        matters: inside,
      },
      {
        path: "adapter.alpha",
        kind: "number",
        start: "16",
        least: 0,
        most: 1e6,
        open: "least",
        matters: inside,
        rare: true,
      },
      {
        path: "adapter.layers",
        kind: "integer",
        start: "2",
        least: 1,
        most: 1000,
        matters: inside,
        rare: true,
      },
      {
        path: "adapter.step_ratio",
        kind: "number",
        start: "0.1",
        least: 1e-9,
        most: 1e3,
        matters: (values) => inside(values) && !causal(values),
        rare: true,
      },
      { path: "model.layers", kind: "integer", start: "0", least: 0, most: 1000, rare: true },
    ],
  },
  {
    id: "training",
    fields: [
      { path: "training.rounds", kind: "integer", start: "10", least: 1, most: 10_000 },
      { path: "training.learning_rate", kind: "number", start: "10", least: 1e-9, most: 1e6 },
      { path: "training.local_steps", kind: "integer", start: "1", least: 1, most: 10_000 },
      { path: "training.sample_rate", kind: "number", start: "1", least: 1e-9, most: 1 },
      {
        path: "training.clip_norm",
        kind: "number",
        start: "1",
        least: 1e-9,
        most: 1e6,
        rare: true,
      },
      {
        path: "training.proximal_mu",
        kind: "number",
        start: "0",
        least: 0,
        most: 1e6,
        rare: true,
      },
      {
        path: "training.examples_cap",
        kind: "integer",
        start: "2000",
        least: 1,
        most: 1e9,
        rare: true,
      },
    ],
  },
  {
    id: "privacy",
    fields: [
      {
        path: "privacy.noise",
        kind: "choice",
        start: "local",
        options: ["local", "distributed", "none"],
      },
      {
        path: "privacy.level",
        kind: "choice",
        start: "record",
        options: ["record", "device"],
        matters: distributed,
      },
      {
        path: "privacy.epsilon",
        kind: "number",
        start: "8",
        least: 0,
        most: 1e6,
        open: "least",
        matters: noised,
      },
      {
        path: "privacy.delta",
        kind: "number",
        start: "0.00001",
        least: 0,
        most: 1,
        open: "both",
        matters: noised,
      },
      {
        path: "privacy.update_clip",
        kind: "number",
        start: "1",
        least: 1e-9,
        most: 1e6,
        matters: ofDevices,
        rare: true,
      },
      {
        path: "privacy.participation",
        kind: "number",
        start: "1",
        least: 1e-9,
        most: 1,
        matters: ofDevices,
        rare: true,
      },
    ],
  },
  {
    id: "protection",
    fields: [
      {
        path: "protection.scheme",
        kind: "choice",
        start: "public-key",
        options: ["public-key", "clear"],
        barred: (values) => (distributed(values) ? ["clear"] : []),
      },
      { path: "protection.min_devices", kind: "integer", start: "16", least: 2 },
      {
        path: "protection.max_devices",
        kind: "integer",
        start: "240",
        least: 2,
        most: 240,
        rare: true,
      },
      {
        path: "protection.bits",
        kind: "choice",
        start: "12",
        options: ["8", "12", "16"],
        barred: (values) => (distributed(values) ? ["8", "12"] : []),
        rare: true,
      },
      {
        path: "protection.value_range",
        kind: "number",
        start: "0",
        least: 0,
        most: 1e15,
        matters: (values) => !distributed(values),
        rare: true,
      },
      {
        path: "protection.groups",
        kind: "integer",
        start: "1",
        least: 1,
        most: 128,
        matters: (values) => robust(values) && values["protection.scheme"] === "public-key",
      },
    ],
  },
  {
    id: "cohort",
    fields: [
      { path: "cohort.devices", kind: "integer", start: "0", least: 0 },
      { path: "cohort.patience_s", kind: "number", start: "60", least: 0, open: "least" },
      {
        path: "cohort.lease_s",
        kind: "number",
        start: "120",
        least: 0,
        open: "least",
        rare: true,
      },
      {
        path: "cohort.round_timeout_s",
        kind: "number",
        start: "3600",
        least: 0,
        open: "least",
        rare: true,
      },
    ],
  },
  {
    id: "server",
    fields: [
      {
        path: "server.rule",
        kind: "choice",
        start: "fedavg",
        options: ["fedavg", "fedadam", "median", "trimmed-mean", "multikrum"],
      },
      {
        path: "server.malicious",
        kind: "integer",
        start: "1",
        least: 1,
        most: 1000,
        matters: (values) => ["trimmed-mean", "multikrum"].includes(values["server.rule"] ?? ""),
      },
      {
        path: "server.learning_rate",
        kind: "number",
        start: "1",
        least: 1e-9,
        most: 1e6,
        rare: true,
      },
      {
        path: "server.beta1",
        kind: "number",
        start: "0.9",
        least: 0,
        most: 1,
        open: "most",
        matters: adaptive,
        rare: true,
      },
      {
        path: "server.beta2",
        kind: "number",
        start: "0.99",
        least: 0,
        most: 1,
        open: "most",
        matters: adaptive,
        rare: true,
      },
      {
        path: "server.tau",
        kind: "number",
        start: "0.001",
        least: 0,
        open: "least",
        matters: adaptive,
        rare: true,
      },
    ],
  },
  {
    id: "evaluation",
    fields: [
      {
        path: "evaluation.share",
        kind: "number",
        start: "0",
        least: 0,
        most: 1,
        open: "most",
        matters: (values) => !ofDevices(values),
      },
      {
        path: "evaluation.noise",
        kind: "number",
        start: "10",
        least: 0.1,
        most: 1e6,
        matters: (values) => !ofDevices(values) && Number(values["evaluation.share"]) > 0,
        rare: true,
      },
      {
        path: "answers.target_error",
        kind: "number",
        start: "0.05",
        least: 0,
        most: 1,
        open: "both",
        matters: (values) => !causal(values),
        rare: true,
      },
    ],
  },
];

export const FIELDS: readonly JobField[] = SECTIONS.flatMap((section) => section.fields);

export const STARTS: Values = Object.fromEntries(FIELDS.map((field) => [field.path, field.start]));

/** Change one value, and those that no longer go with it. */
export function withValue(values: Values, path: string, value: string): Values {
  const next: Record<string, string> = { ...values, [path]: value };
  if (path === "privacy.noise" && value === "distributed") next["training.local_steps"] = "1";
  for (const field of FIELDS) {
    const barred = field.barred?.(next) ?? [];
    if (barred.includes(next[field.path] ?? "")) {
      next[field.path] = field.options?.find((option) => !barred.includes(option)) ?? field.start;
    }
  }
  return next;
}

export interface FieldProblem {
  what: "needed" | "name" | "number" | "whole" | "least" | "above" | "most" | "below";
  bound?: number;
}

const NAME = /^[a-z0-9]([a-z0-9-]{0,39}[a-z0-9])?$/;

function numberProblem(field: JobField, text: string): FieldProblem | null {
  const value = Number(text);
  const { least, most, open } = field;
  if (!Number.isFinite(value)) return { what: "number" };
  if (field.kind === "integer" && !Number.isInteger(value)) return { what: "whole" };
  if (least !== undefined) {
    if (open === "least" || open === "both") {
      if (value <= least) return { what: "above", bound: least };
    } else if (value < least) return { what: "least", bound: least };
  }
  if (most !== undefined) {
    if (open === "most" || open === "both") {
      if (value >= most) return { what: "below", bound: most };
    } else if (value > most) return { what: "most", bound: most };
  }
  return null;
}

/** What is wrong with the fields that matter, by path. The coordinator finds what they contradict. */
export function fieldProblems(values: Values): Map<string, FieldProblem> {
  const found = new Map<string, FieldProblem>();
  for (const field of FIELDS) {
    if (field.matters && !field.matters(values)) continue;
    const text = (values[field.path] ?? "").trim();
    const isNumber = field.kind === "integer" || field.kind === "number";
    let problem: FieldProblem | null = null;
    if (text === "") problem = { what: "needed" };
    else if (isNumber) problem = numberProblem(field, text);
    else if (field.path === "name" && !NAME.test(text)) problem = { what: "name" };
    if (problem) found.set(field.path, problem);
  }
  return found;
}

/** Bits are a choice of numbers. */
const NUMBERS = new Set(["protection.bits"]);

/** The tables of a job, with every field that matters. */
export function jobOf(values: Values): Record<string, unknown> {
  const job: Record<string, unknown> = {};
  for (const field of FIELDS) {
    if (field.matters && !field.matters(values)) continue;
    const text = (values[field.path] ?? "").trim();
    const number = field.kind === "integer" || field.kind === "number" || NUMBERS.has(field.path);
    const value = number ? Number(text) : text;
    const [table, name] = field.path.split(".") as [string, string | undefined];
    if (name === undefined) job[table] = value;
    else job[table] = { ...(job[table] as object | undefined), [name]: value };
  }
  return job;
}

/** Lines of a refusal that are about a field, by its path: `  - privacy.epsilon: …`. */
export function refusedFields(detail: string): Map<string, string> {
  const paths = new Set(FIELDS.map((field) => field.path));
  const found = new Map<string, string>();
  for (const line of detail.split("\n")) {
    const [, path, problem] = /^\s*- ([\w.]+): (.+)$/.exec(line) ?? [];
    if (path !== undefined && problem !== undefined && paths.has(path)) found.set(path, problem);
  }
  return found;
}
