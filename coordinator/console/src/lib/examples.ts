/** Labelled texts out of a file that a person chose: `.csv` with a header, or `.jsonl`. */

/** Text, label and group. */
export type Example = [text: string, label: string, group: string];

export interface FileProblem {
  line: number;
  what: "json" | "object" | "missing" | "empty" | "quote";
  /** Of what is missing or empty. */
  column?: string;
}

export interface ReadExamples {
  examples: Example[];
  problems: FileProblem[];
}

const COLUMNS = ["text", "label"] as const;

/** Read as the command line reads it: columns `text` and `label`, and `group` where there is one. */
export function readExamples(name: string, content: string): ReadExamples {
  const problems: FileProblem[] = [];
  const examples: Example[] = [];
  // Spreadsheets put a byte order mark first.
  const plain = content.replace(/^\uFEFF/, "");
  const rows = name.toLowerCase().endsWith(".csv")
    ? csvRows(plain, problems)
    : jsonRows(plain, problems);
  for (const [line, row] of rows) {
    const absent = COLUMNS.filter((column) => !(column in row));
    const empty = COLUMNS.filter((column) => column in row && cell(row[column]) === "");
    for (const column of absent) problems.push({ line, what: "missing", column });
    for (const column of empty) problems.push({ line, what: "empty", column });
    if (absent.length + empty.length === 0) {
      examples.push([cell(row.text), cell(row.label), cell(row.group)]);
    }
  }
  return { examples, problems };
}

/** A text without space around it, or a whole number by its spelling; else nothing. */
function cell(value: unknown): string {
  if (typeof value === "string") return value.trim();
  return Number.isInteger(value) ? String(value) : "";
}

type Row = [line: number, values: Record<string, unknown>];

function* jsonRows(content: string, problems: FileProblem[]): Generator<Row> {
  for (const [at, text] of content.split("\n").entries()) {
    if (text.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      problems.push({ line: at + 1, what: "json" });
      continue;
    }
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      yield [at + 1, value as Record<string, unknown>];
    } else problems.push({ line: at + 1, what: "object" });
  }
}

function* csvRows(content: string, problems: FileProblem[]): Generator<Row> {
  const records = csvRecords(content, problems);
  const [, head] = records.next().value ?? [0, []];
  for (const column of COLUMNS) {
    if (!head.includes(column)) {
      problems.push({ line: 1, what: "missing", column });
      return;
    }
  }
  for (const [line, cells] of records) {
    yield [line, Object.fromEntries(head.map((column, at) => [column, cells[at] ?? ""]))];
  }
}

/** Records by RFC 4180, each with the line it begins on; lines without anything are passed over. */
function* csvRecords(
  content: string,
  problems: FileProblem[],
): Generator<[number, string[]], undefined> {
  let cells: string[] = [];
  let text = "";
  let quoted = false;
  let line = 1;
  let began = 1;
  for (let at = 0; at <= content.length; at += 1) {
    const character = content[at];
    if (character === "\n") line += 1;
    if (quoted && character !== undefined) {
      if (character !== '"') text += character;
      else if (content[at + 1] === '"') {
        text += '"';
        at += 1;
      } else quoted = false;
    } else if (character === '"' && text === "") quoted = true;
    else if (character === ",") {
      cells.push(text);
      text = "";
    } else if (character === "\n" || character === undefined) {
      if (quoted) problems.push({ line: began, what: "quote" });
      cells.push(text.replace(/\r$/, ""));
      if (cells.length > 1 || cells[0] !== "") yield [began, cells];
      cells = [];
      text = "";
      began = line;
    } else text += character;
  }
}
