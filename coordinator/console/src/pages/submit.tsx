import { type ReactNode, useState } from "react";
import { call } from "../api/client";
import type { RunSummary } from "../api/shapes";
import { Button, Field, Notice, PageHead, useAction, Wrong } from "../components/parts";
import { useWords, type Word } from "../i18n";
import { type Choices, DEFAULTS, type Faults, faultsOf, jobOf, probeOf } from "../job";
import { go, linkTo } from "../router";

const OPTIONS = {
  task: ["text-classification", "causal-lm"],
  trainable: ["head", "lora"],
  noise: ["local", "distributed", "none"],
  level: ["record", "device"],
  scheme: ["public-key", "clear"],
  rule: ["fedavg", "fedadam", "median", "trimmed-mean", "multikrum"],
} as const;

type Chosen = keyof typeof OPTIONS;
type Typed = Exclude<keyof Choices, Chosen>;

/** A job, choice by choice, each with what it is for. */
export function SubmitPage() {
  const { t } = useWords();
  const [choices, setChoices] = useState<Choices>(DEFAULTS);
  const [faults, setFaults] = useState<Faults>({});
  const choose = (field: keyof Choices, value: string) => {
    setChoices({ ...choices, [field]: value });
    setFaults({ ...faults, [field]: undefined });
  };
  const submit = useAction(async () => {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    const run = await call<RunSummary>("POST", "/api/v1/runs", {
      job: jobOf(choices),
      probe: probeOf(choices.probe),
      seed,
    });
    go("runs", run.run);
  });
  const typed = (field: Typed, more: { inputMode?: "numeric" | "decimal" } = {}) => (
    <Typed field={field} value={choices[field]} fault={faults[field]}>
      {(ids) => (
        <input
          {...ids}
          {...more}
          value={choices[field]}
          onChange={(event) => choose(field, event.target.value)}
        />
      )}
    </Typed>
  );
  const chosen = (field: Chosen) => (
    <Choice field={field} value={choices[field]} choose={(value) => choose(field, value)} />
  );
  return (
    <>
      <PageHead
        title={t("submit.title")}
        about={
          <>
            <a href={linkTo("runs")}>{t("runs.title")}</a> · {t("submit.about")}
          </>
        }
      />
      <form
        className="stack"
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          const found = faultsOf(choices);
          setFaults(found);
          const first = Object.keys(found)[0];
          if (first) document.querySelector<HTMLElement>(`[data-field="${first}"] [id]`)?.focus();
          else void submit.run();
        }}
      >
        <fieldset className="stack">
          <legend>{t("submit.what")}</legend>
          {typed("name")}
          {chosen("task")}
          {typed("base")}
          {chosen("trainable")}
          <Typed field="probe" value={choices.probe} fault={faults.probe}>
            {(ids) => (
              <>
                <input
                  type="file"
                  accept=".csv,text/csv"
                  aria-label={t("submit.probe-file")}
                  onChange={async (event) => {
                    const file = event.target.files?.[0];
                    if (file) choose("probe", await file.text());
                  }}
                />
                <textarea
                  {...ids}
                  className="mono"
                  placeholder={"text,label,group\nwhere is my parcel,delivery,en"}
                  value={choices.probe}
                  onChange={(event) => choose("probe", event.target.value)}
                />
              </>
            )}
          </Typed>
        </fieldset>
        <fieldset className="stack">
          <legend>{t("submit.promise")}</legend>
          {chosen("noise")}
          {choices.noise === "none" ? (
            <Notice tone="warn">{t("submit.no-promise")}</Notice>
          ) : (
            <>
              {typed("epsilon", { inputMode: "decimal" })}
              {choices.noise === "distributed" && chosen("level")}
            </>
          )}
          {chosen("scheme")}
          {choices.scheme === "clear" && <Notice tone="warn">{t("submit.in-clear")}</Notice>}
          {typed("minDevices", { inputMode: "numeric" })}
        </fieldset>
        <fieldset className="stack">
          <legend>{t("submit.how")}</legend>
          {typed("rounds", { inputMode: "numeric" })}
          {typed("cohort", { inputMode: "numeric" })}
          {typed("learningRate", { inputMode: "decimal" })}
          {chosen("rule")}
          {typed("groups", { inputMode: "numeric" })}
          {typed("targetError", { inputMode: "decimal" })}
        </fieldset>
        {Object.values(faults).some(Boolean) && <Notice tone="bad">{t("submit.faults")}</Notice>}
        <Wrong error={submit.error} />
        <div className="actions">
          <a className="button" href={linkTo("runs")}>
            {t("common.cancel")}
          </a>
          <Button tone="main" type="submit" busy={submit.busy}>
            {t("submit.submit")}
          </Button>
        </div>
      </form>
    </>
  );
}

function Typed({
  field,
  fault,
  children,
}: {
  field: Typed;
  value: string;
  fault: Faults[Typed];
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const { t } = useWords();
  return (
    <div data-field={field}>
      <Field
        label={t(`submit.${field}` as Word)}
        hint={t(`submit.${field}-about` as Word)}
        wrong={fault && t(`fault.${fault}`)}
      >
        {children}
      </Field>
    </div>
  );
}

/** One of few, each with what it means. */
function Choice({
  field,
  value,
  choose,
}: {
  field: Chosen;
  value: string;
  choose: (value: string) => void;
}) {
  const { t } = useWords();
  return (
    <div className="field" role="radiogroup" aria-label={t(`submit.${field}`)}>
      <span className="label">{t(`submit.${field}`)}</span>
      {OPTIONS[field].map((option) => (
        <label key={option} className="row">
          <input
            type="radio"
            name={field}
            value={option}
            checked={option === value}
            onChange={() => choose(option)}
          />
          <span>
            {t(`${field}.${option}` as Word)}{" "}
            <span className="hint">{t(`${field}.${option}-about` as Word)}</span>
          </span>
        </label>
      ))}
    </div>
  );
}
