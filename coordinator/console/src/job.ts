/** What a person chooses in the form, as text where it is typed. */
export interface Choices {
  name: string;
  task: string;
  base: string;
  trainable: "head" | "lora";
  rounds: string;
  learningRate: string;
  noise: "local" | "distributed" | "none";
  level: "record" | "device";
  epsilon: string;
  scheme: "public-key" | "clear";
  minDevices: string;
  rule: "fedavg" | "fedadam" | "median" | "trimmed-mean" | "multikrum";
  groups: string;
  cohort: string;
  targetError: string;
  probe: string;
}

export const DEFAULTS: Choices = {
  name: "",
  task: "text-classification",
  base: "sentence-transformers/all-MiniLM-L6-v2",
  trainable: "head",
  rounds: "10",
  learningRate: "10",
  noise: "local",
  level: "record",
  epsilon: "8",
  scheme: "public-key",
  minDevices: "16",
  rule: "fedavg",
  groups: "1",
  cohort: "0",
  targetError: "0.05",
  probe: "",
};

export type Fault = "name" | "number" | "whole" | "positive" | "share" | "probe" | "required";
export type Faults = Partial<Record<keyof Choices, Fault>>;

const NAME = /^[a-z0-9]([a-z0-9-]{0,39}[a-z0-9])?$/;
const WHOLE: [keyof Choices, number][] = [
  ["rounds", 1],
  ["minDevices", 2],
  ["groups", 1],
  ["cohort", 0],
];

/** What is wrong with the choices, before the coordinator is asked, which checks everything again. */
export function faultsOf(choices: Choices): Faults {
  const faults: Faults = {};
  if (!NAME.test(choices.name)) faults.name = "name";
  if (!choices.base.trim()) faults.base = "required";
  for (const [field, least] of WHOLE) {
    if (!/^\d+$/.test(choices[field]) || Number(choices[field]) < least) faults[field] = "whole";
  }
  for (const field of ["learningRate", "epsilon"] as const) {
    if (!(Number(choices[field]) > 0)) faults[field] = "positive";
  }
  const share = Number(choices.targetError);
  if (!(share > 0 && share < 1)) faults.targetError = "share";
  if (probeOf(choices.probe) === null) faults.probe = "probe";
  return faults;
}

/**
 * Examples from CSV with the columns text, label and, at will, group; null where it is none.
 *
 * Fields may be quoted as RFC 4180 says.
 */
export function probeOf(csv: string): [string, string, string][] | null {
  const [head, ...rows] = rowsOf(csv);
  if (!head) return null;
  const [text, label, group] = ["text", "label", "group"].map((name) => head.indexOf(name));
  if (text === undefined || label === undefined || text < 0 || label < 0) return null;
  const found = rows.map((row): [string, string, string] => [
    row[text] ?? "",
    row[label] ?? "",
    group === undefined || group < 0 ? "" : (row[group] ?? ""),
  ]);
  return found.length > 0 && found.every(([words, name]) => words !== "" && name !== "")
    ? found
    : null;
}

function rowsOf(csv: string): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let field = "";
  let quoted = false;
  const endField = () => {
    row.push(field);
    field = "";
  };
  const endRow = () => {
    endField();
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = [];
  };
  for (let at = 0; at < csv.length; at += 1) {
    const letter = csv[at]!;
    if (quoted) {
      if (letter !== '"') field += letter;
      else if (csv[at + 1] === '"') {
        field += '"';
        at += 1;
      } else quoted = false;
    } else if (letter === '"' && field === "") quoted = true;
    else if (letter === ",") endField();
    else if (letter === "\n") endRow();
    else if (letter !== "\r") field += letter;
  }
  endRow();
  return rows;
}

/** The tables of job.toml: those settings that the form offers; the others keep their defaults. */
export function jobOf(choices: Choices): Record<string, unknown> {
  return {
    name: choices.name,
    task: choices.task,
    model: { base: choices.base.trim(), trainable: choices.trainable },
    training: { rounds: Number(choices.rounds), learning_rate: Number(choices.learningRate) },
    privacy: {
      noise: choices.noise,
      level: choices.level,
      epsilon: Number(choices.epsilon),
    },
    protection: {
      scheme: choices.scheme,
      min_devices: Number(choices.minDevices),
      groups: Number(choices.groups),
      // Distributed noise leaves no room in fewer bits.
      ...(choices.noise === "distributed" ? { bits: 16 } : {}),
    },
    server: { rule: choices.rule },
    cohort: { devices: Number(choices.cohort) },
    answers: { target_error: Number(choices.targetError) },
  };
}
