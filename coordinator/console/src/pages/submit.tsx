/** A new run: a form that says of every choice what it is for. */

import { useRef, useState } from "react";
import { api, Problem } from "../api/api";
import { useAction } from "../api/use_resource";
import { Card, Notice, PageHead, ProblemNotice, withCode } from "../components/basic";
import { Button } from "../components/button";
import { CheckField, ChoiceField, Field, TextField } from "../components/field";
import { toast } from "../components/toast";
import { type FileProblem, type ReadExamples, readExamples } from "../lib/examples";
import { useFormat } from "../lib/format";
import { type Key, useText } from "../lib/i18n";
import {
  type FieldProblem,
  fieldProblems,
  type JobField,
  jobOf,
  refusedFields,
  SECTIONS,
  STARTS,
  type Values,
  withValue,
} from "../lib/job_form";
import { address, go } from "../lib/router";

/** Where this page is under `runs`; no run can be called so. */
export const NEW_RUN = "_new";

const MOST_EXAMPLES = 100_000;
const FILE_PROBLEMS_SHOWN = 5;

function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] as number;
}

export function Submit() {
  const t = useText();
  const form = useRef<HTMLFormElement>(null);
  const [values, setValues] = useState<Values>(STARTS);
  const [probe, setProbe] = useState<ReadExamples | null>(null);
  const [simulation, setSimulation] = useState(false);
  const [tried, setTried] = useState(false);
  const problems = fieldProblems(values);
  const probeIsGood =
    probe !== null &&
    probe.problems.length === 0 &&
    probe.examples.length > 0 &&
    probe.examples.length <= MOST_EXAMPLES;
  const submitting = useAction(async () => {
    const made = await api.post<{ run: string }>("/api/v1/runs", {
      job: jobOf(values),
      probe: probe?.examples ?? [],
      seed: randomSeed(),
      simulation,
    });
    toast(t("submit.done", { run: made.run }));
    go("runs", made.run);
  });
  const refused = refusedFields(submitting.problem?.message ?? "");

  function submit(): void {
    setTried(true);
    if (submitting.busy) return;
    if (problems.size === 0 && probeIsGood) void submitting.run();
    else {
      // After what is wrong has been marked.
      setTimeout(() => {
        const first = form.current?.querySelector<HTMLElement>("[aria-invalid]");
        const hidden = first?.closest("details");
        if (hidden) hidden.open = true;
        first?.focus();
      });
    }
  }

  const shown = (field: JobField) => (
    <JobInput
      key={field.path}
      field={field}
      values={values}
      problem={tried ? problems.get(field.path) : undefined}
      refused={refused.get(field.path)}
      onChange={(value) => {
        submitting.reset();
        setValues(withValue(values, field.path, value));
      }}
    />
  );

  return (
    <div className="page">
      <PageHead
        title={t("submit.title")}
        about={t("submit.about")}
        up={{ href: address("runs"), text: t("runs.title") }}
      />
      <form
        ref={form}
        className="stack-wide"
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        {SECTIONS.map((section) => {
          const fields = section.fields.filter((field) => field.matters?.(values) ?? true);
          const usual = fields.filter((field) => !field.rare);
          const rare = fields.filter((field) => field.rare);
          return (
            <Card
              key={section.id}
              title={t(`submit.section.${section.id}`)}
              about={t(`submit.section.${section.id}.about`)}
            >
              <div className="stack">
                <Grouped fields={usual} show={shown} />
                {section.id === "privacy" && values["privacy.noise"] === "none" && (
                  <Notice tone="warn">{t("submit.privacy.warning")}</Notice>
                )}
                {section.id === "protection" && values["protection.scheme"] === "clear" && (
                  <Notice tone="warn">{withCode(t("submit.protection.warning"))}</Notice>
                )}
                {rare.length > 0 && (
                  <details className="rare">
                    <summary>{t("submit.rare")}</summary>
                    <Grouped fields={rare} show={shown} />
                  </details>
                )}
              </div>
            </Card>
          );
        })}
        <Card title={t("submit.section.probe")} about={t("submit.section.probe.about")}>
          <div className="stack">
            <ProbeInput probe={probe} missing={tried && probe === null} onChange={setProbe} />
            <CheckField
              label={t("submit.simulation")}
              hint={t("submit.simulation.hint")}
              checked={simulation}
              onChange={setSimulation}
            />
          </div>
        </Card>
        <ProblemNotice problem={submitting.problem} />
        {tried && problems.size + (probeIsGood ? 0 : 1) > 0 && (
          <Notice tone="bad">{t("submit.look")}</Notice>
        )}
        <div className="row">
          <Button type="submit" kind="primary" busy={submitting.busy}>
            {t("submit.go")}
          </Button>
          <a className="button" data-kind="quiet" href={address("runs")}>
            {t("common.cancel")}
          </a>
        </div>
      </form>
    </div>
  );
}

/** Choices take the whole width; plain fields stand side by side. */
function Grouped(props: {
  fields: readonly JobField[];
  show: (field: JobField) => React.ReactNode;
}) {
  const choices = props.fields.filter((field) => field.kind === "choice");
  const others = props.fields.filter((field) => field.kind !== "choice");
  return (
    <div className="stack-wide">
      {others.length > 0 && <div className="fields">{others.map(props.show)}</div>}
      {choices.map(props.show)}
    </div>
  );
}

function useProblemText(): (problem: FieldProblem) => string {
  const t = useText();
  const f = useFormat();
  return ({ what, bound }) =>
    t(`submit.problem.${what}`, { bound: bound === undefined ? "" : f.number(bound, 9) });
}

function JobInput(props: {
  field: JobField;
  values: Values;
  problem: FieldProblem | undefined;
  refused: string | undefined;
  onChange: (value: string) => void;
}) {
  const t = useText();
  const told = useProblemText();
  const { field, values } = props;
  const label = t(`submit.${field.path}` as Key);
  const value = values[field.path] ?? "";
  if (field.kind === "choice") {
    const barred = field.barred?.(values) ?? [];
    return (
      <ChoiceField
        label={label}
        value={value}
        onChange={props.onChange}
        options={(field.options ?? []).map((option) => ({
          value: option,
          text: t(`submit.${field.path}.${option}` as Key),
          about: t(`submit.${field.path}.${option}.about` as Key),
          disabled: barred.includes(option),
        }))}
      />
    );
  }
  return (
    <TextField
      label={label}
      hint={t(`submit.${field.path}.hint` as Key)}
      error={props.problem ? told(props.problem) : props.refused}
      value={value}
      onChange={props.onChange}
      autoComplete="off"
      {...(field.kind === "text"
        ? {}
        : { inputMode: field.kind === "integer" ? ("numeric" as const) : ("decimal" as const) })}
    />
  );
}

function ProbeInput(props: {
  probe: ReadExamples | null;
  missing: boolean;
  onChange: (probe: ReadExamples | null) => void;
}) {
  const t = useText();
  const f = useFormat();
  const [unreadable, setUnreadable] = useState<Problem | null>(null);
  const { probe } = props;
  const line = (problem: FileProblem) =>
    t(`submit.file.${problem.what}`, {
      line: f.number(problem.line),
      column: problem.column ?? "",
    });

  async function read(file: File | undefined): Promise<void> {
    setUnreadable(null);
    if (!file) {
      props.onChange(null);
      return;
    }
    let text: string;
    try {
      const bytes = new Uint8Array(await file.arrayBuffer());
      // Fatal: a wrong encoding would change texts without anybody noticing.
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch (err) {
      // A decoder's error is a TypeError; a file that is gone is something else.
      const detail = t(err instanceof TypeError ? "submit.file.encoding" : "submit.file.gone");
      props.onChange(null);
      setUnreadable(new Problem({ status: 0, code: "console", detail }));
      return;
    }
    props.onChange(readExamples(file.name, text));
  }

  let error: string | undefined;
  if (props.missing) error = t("submit.problem.needed");
  else if (probe && probe.examples.length > MOST_EXAMPLES) {
    error = t("submit.file.many", { most: f.number(MOST_EXAMPLES) });
  } else if (probe && probe.problems.length === 0 && probe.examples.length === 0) {
    error = t("submit.file.none");
  } else if (probe && probe.problems.length > 0) error = t("submit.file.bad");

  const labels = new Set(probe?.examples.map(([, label]) => label));
  return (
    <div className="stack">
      <Field label={t("submit.probe")} hint={t("submit.probe.hint")} error={error}>
        {(control) => (
          <input
            {...control}
            type="file"
            accept=".csv,.jsonl"
            onChange={(event) => void read(event.target.files?.[0])}
          />
        )}
      </Field>
      <ProblemNotice problem={unreadable} />
      {probe && probe.problems.length > 0 && (
        <ul className="small">
          {probe.problems.slice(0, FILE_PROBLEMS_SHOWN).map((problem) => (
            <li key={`${problem.line} ${problem.what} ${problem.column}`}>{line(problem)}</li>
          ))}
          {probe.problems.length > FILE_PROBLEMS_SHOWN && (
            <li>
              {t("submit.file.more", {
                n: f.number(probe.problems.length - FILE_PROBLEMS_SHOWN),
              })}
            </li>
          )}
        </ul>
      )}
      {probe && !error && (
        <p className="soft">
          {t("submit.file.read", {
            n: f.number(probe.examples.length),
            labels: f.number(labels.size),
          })}
        </p>
      )}
    </div>
  );
}
