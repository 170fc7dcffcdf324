/** A conversation with any model, with or without an adapter. It is kept nowhere else. */

import { type KeyboardEvent, type ReactNode, useEffect, useRef, useState } from "react";
import { Problem } from "../api/api";
import { chat, type Said } from "../api/chat";
import type { RunSummary } from "../api/types";
import { useListing, useResource } from "../api/use_resource";
import { Card, Empty, PageHead, ProblemNotice, Skeleton, withCode } from "../components/basic";
import { Button } from "../components/button";
import { Copy } from "../components/copy";
import { Field, SelectField, TextField } from "../components/field";
import { useFormat } from "../lib/format";
import { useText } from "../lib/i18n";
import { useMay } from "../lib/session";

interface Models {
  /** Models of texts have a `task`, those that talk have none. */
  data: { id: string; task?: string }[];
}

interface Measured {
  firstMs: number;
  tokensPerS: number | null;
}

const HOTTEST = 2;
const MOST_TOKENS = 100_000;

export function Playground() {
  const t = useText();
  const models = useResource<Models>("/v1/models");
  const names = models.data?.data.filter((each) => !each.task).map((each) => each.id);
  return (
    <div className="page">
      <PageHead title={t("playground.title")} about={t("playground.about")} />
      <ProblemNotice problem={models.problem} retry={models.reload} />
      {!names && !models.problem && <Skeleton lines={6} />}
      {names?.length === 0 && (
        <Card>
          <Empty icon="playground" title={t("playground.empty")}>
            <p>{t("playground.empty.about")}</p>
            <Copy text="llmos up --model NAME" />
          </Empty>
        </Card>
      )}
      {names && names.length > 0 && <Conversation models={names} />}
    </div>
  );
}

function Conversation({ models }: { models: string[] }) {
  const t = useText();
  const f = useFormat();
  const [model, setModel] = useState(models[0] ?? "");
  const [run, setRun] = useState("");
  const [temperature, setTemperature] = useState("0.7");
  const [most, setMost] = useState("256");
  const [system, setSystem] = useState("");
  const [said, setSaid] = useState<Said[]>([]);
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [measured, setMeasured] = useState<Measured | null>(null);
  const leaving = useRef<AbortController | null>(null);
  const end = useRef<HTMLDivElement>(null);

  useEffect(() => () => leaving.current?.abort(), []);
  // biome-ignore lint/correctness/useExhaustiveDependencies: every word moves the end
  useEffect(() => {
    end.current?.scrollIntoView?.({ block: "nearest" });
  }, [said]);

  const heat = wrongNumber(temperature, 0, HOTTEST);
  const length = wrongNumber(most, 1, MOST_TOKENS);
  const wrong = (is: boolean, least: number, top: number) =>
    is ? t("playground.number", { least, most: f.number(top) }) : undefined;

  async function send(): Promise<void> {
    if (busy || heat || length || text.trim() === "") return;
    const before: Said[] = [...said, { role: "user", content: text }];
    const asked = text;
    const stop = new AbortController();
    leaving.current = stop;
    setSaid([...before, { role: "assistant", content: "" }]);
    setText("");
    setBusy(true);
    setProblem(null);
    setMeasured(null);
    const beganAt = performance.now();
    let firstAt: number | null = null;
    let answer = "";
    try {
      const usage = await chat(
        {
          model: run === "" ? model : `${model}:${run}`,
          messages: system.trim() ? [{ role: "system", content: system }, ...before] : before,
          temperature: Number(temperature),
          max_tokens: Number(most),
        },
        (words) => {
          firstAt ??= performance.now();
          answer += words;
          setSaid([...before, { role: "assistant", content: answer }]);
        },
        stop.signal,
      );
      setMeasured(measure(beganAt, firstAt, performance.now(), usage?.completion_tokens ?? 0));
    } catch (err) {
      if (!stop.signal.aborted) {
        setProblem(
          err instanceof Problem
            ? err
            : new Problem({ status: 0, code: "console", detail: String(err) }),
        );
        // What was asked and not answered can be asked again.
        if (answer === "") {
          setSaid(said);
          setText(asked);
        }
      }
    } finally {
      setBusy(false);
    }
  }

  function onKey(event: KeyboardEvent): void {
    // Not while a Chinese word is being composed, which Enter ends.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    void send();
  }

  return (
    <>
      <Card>
        <div className="stack">
          <div className="columns">
            <SelectField
              label={t("playground.model")}
              value={model}
              options={models.map((name) => ({ value: name, text: name }))}
              onChange={setModel}
            />
            <Adapter value={run} onChange={setRun} />
            <TextField
              label={t("playground.temperature")}
              hint={t("playground.temperature.hint")}
              error={wrong(heat, 0, HOTTEST)}
              inputMode="decimal"
              value={temperature}
              onChange={setTemperature}
            />
            <TextField
              label={t("playground.most")}
              error={wrong(length, 1, MOST_TOKENS)}
              inputMode="numeric"
              value={most}
              onChange={setMost}
            />
          </div>
          <Field label={t("playground.system")} hint={t("playground.system.hint")}>
            {(control) => (
              <textarea
                {...control}
                rows={2}
                value={system}
                onChange={(event) => setSystem(event.target.value)}
              />
            )}
          </Field>
        </div>
      </Card>
      <div className="talk" role="log" aria-label={t("playground.talk")} aria-busy={busy}>
        {said.map((each, at) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: a conversation only grows
          <div key={at} className="said" data-by={each.role}>
            <span className="small soft">
              {t(each.role === "user" ? "playground.you" : "playground.answer")}
            </span>
            <p>{each.content || "…"}</p>
          </div>
        ))}
        <div ref={end} />
      </div>
      <ProblemNotice problem={problem} />
      {measured && (
        <p className="small soft">
          {t("playground.first", { ms: f.number(measured.firstMs) })}
          {measured.tokensPerS !== null &&
            ` · ${t("playground.speed", { n: f.number(measured.tokensPerS, 1) })}`}
        </p>
      )}
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <Field label={t("playground.ask")} hint={t("playground.ask.hint")}>
          {(control) => (
            <textarea
              {...control}
              rows={3}
              value={text}
              onKeyDown={onKey}
              onChange={(event) => setText(event.target.value)}
            />
          )}
        </Field>
        <div className="row">
          {busy ? (
            <Button onClick={() => leaving.current?.abort()}>{t("playground.stop")}</Button>
          ) : (
            <Button type="submit" kind="primary" disabled={text.trim() === ""}>
              {t("playground.send")}
            </Button>
          )}
          {said.length > 0 && !busy && (
            <Button
              kind="quiet"
              onClick={() => {
                setSaid([]);
                setMeasured(null);
                setProblem(null);
              }}
            >
              {t("playground.new")}
            </Button>
          )}
        </div>
      </form>
    </>
  );
}

function Adapter(props: { value: string; onChange: (run: string) => void }) {
  const t = useText();
  const mayList = useMay("operator", "admin");
  const common = { label: t("playground.run"), hint: withCode(t("playground.model.hint")) };
  if (mayList) return <ListedAdapter {...common} {...props} />;
  return <TextField {...common} {...props} />;
}

function ListedAdapter(props: {
  label: string;
  hint: ReactNode;
  value: string;
  onChange: (run: string) => void;
}) {
  const t = useText();
  const runs = useListing<RunSummary>("/api/v1/runs", { limit: 200 });
  const learnt = runs.items.filter((each) => each.adapter !== "" && each.task === "causal-lm");
  return (
    <SelectField
      {...props}
      options={[
        { value: "", text: t("playground.run.none") },
        ...learnt.map((each) => ({ value: each.run, text: each.run })),
      ]}
    />
  );
}

function wrongNumber(text: string, least: number, most: number): boolean {
  const number = Number(text);
  return text.trim() === "" || !(number >= least && number <= most);
}

/** Times in milliseconds. The first token is in the first time, and not in the speed. */
function measure(
  beganAt: number,
  firstAt: number | null,
  endedAt: number,
  tokens: number,
): Measured | null {
  if (firstAt === null) return null;
  const passed = (endedAt - firstAt) / 1000;
  return {
    firstMs: firstAt - beganAt,
    tokensPerS: tokens > 1 && passed > 0 ? (tokens - 1) / passed : null,
  };
}
