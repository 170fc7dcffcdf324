import { useEffect, useRef, useState } from "react";
import { call, type Page } from "../api/client";
import type { ServedNow, ServingState, Use } from "../api/shapes";
import { Chart } from "../components/chart";
import { Badge, Card, Empty, Figure, Loading, Notice, PageHead, Wrong } from "../components/parts";
import { Table } from "../components/table";
import { number, percent } from "../format";
import { useWords } from "../i18n";
import { useRead, useTopic } from "../state";
import { ENGINE_TONES } from "./models";

const KEPT = 60;
const EVERY_MS = 2000;

type Ways = "key" | "model" | "day";
const WAYS: Ways[] = ["key", "model", "day"];

/** How the language models keep up with what is asked of them. */
export function ServingPage() {
  const { t } = useWords();
  const { state, problem } = useTopic<ServingState>("serving");
  const models = Object.entries(state?.models ?? {});
  return (
    <>
      <PageHead title={t("serving.title")} about={t("serving.about")} />
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!state && !problem && <Loading />}
      <div className="stack">
        {state && models.length === 0 && (
          <Card>
            <Empty title={t("playground.none")} command="llmos up --model NAME=FOLDER">
              {t("playground.none-about")}
            </Empty>
          </Card>
        )}
        {models.map(([name, now]) => (
          <Served key={name} name={name} now={now} />
        ))}
        <UsageCard />
      </div>
    </>
  );
}

function Served({ name, now }: { name: string; now: ServedNow }) {
  const { t, code, language } = useWords();
  const history = useHistory(now);
  const seconds = (value: number | undefined) =>
    value === undefined ? "–" : `${number(value, language, 2)} s`;
  const places = history.map((_, at) => `${((at - history.length + 1) * EVERY_MS) / 1000} s`);
  return (
    <Card
      title={name}
      aside={<Badge tone={ENGINE_TONES[now.state] ?? ""}>{code("engine", now.state)}</Badge>}
    >
      <div className="stack">
        {now.reason && <Notice tone="bad">{now.reason}</Notice>}
        <div className="figures">
          <Figure
            label={t("serving.active")}
            value={`${number(now.active, language)} / ${number(now.slots, language)}`}
          />
          <Figure label={t("serving.queue")} value={number(now.queue, language)} />
          <Figure label={t("serving.speed")} value={number(now.tokens_per_s, language, 1)} />
          <Figure
            label={t("serving.first")}
            value={seconds(now.first_token_s?.p50)}
            note={`p95 ${seconds(now.first_token_s?.p95)}`}
          />
          <Figure
            label={t("serving.cache")}
            value={now.cache_lookups ? percent(now.cache_hits / now.cache_lookups, language) : "–"}
          />
          <Figure label={t("serving.requests")} value={number(now.requests, language)} />
        </div>
        <div className="grid">
          <Chart
            title={t("serving.speed")}
            places={places}
            series={[
              { name: t("serving.speed"), values: history.map((each) => each.tokens_per_s) },
            ]}
            format={(value) => number(value, language, 1)}
          />
          <Chart
            title={t("serving.load")}
            places={places}
            series={[
              { name: t("serving.active"), values: history.map((each) => each.active) },
              { name: t("serving.queue"), values: history.map((each) => each.queue) },
            ]}
            format={(value) => number(value, language)}
          />
        </div>
      </div>
    </Card>
  );
}

/** The last two minutes, since the page was opened. */
function useHistory(now: ServedNow): ServedNow[] {
  const [history, setHistory] = useState<ServedNow[]>([now]);
  const last = useRef(now);
  last.current = now;
  useEffect(() => {
    const timer = setInterval(
      () => setHistory((before) => [...before.slice(1 - KEPT), last.current]),
      EVERY_MS,
    );
    return () => clearInterval(timer);
  }, []);
  return history;
}

function UsageCard() {
  const { t, language } = useWords();
  const [by, setBy] = useState<Ways>("key");
  const { answer, error } = useRead(
    () => call<Page<Use>>("GET", `/api/v1/usage?by=${by}&limit=200`),
    by,
  );
  return (
    <Card
      title={t("serving.usage")}
      aside={
        <select
          className="input"
          aria-label={t("serving.by")}
          value={by}
          onChange={(event) => setBy(event.target.value as Ways)}
        >
          {WAYS.map((way) => (
            <option key={way} value={way}>
              {t(`serving.by-${way}`)}
            </option>
          ))}
        </select>
      }
    >
      <Wrong error={error} />
      <Table
        caption={t("serving.usage")}
        rows={answer?.items ?? []}
        keyOf={(use) => use.name}
        empty={<Empty title={t("serving.no-usage")} />}
        columns={[
          { name: t(`serving.by-${by}`), show: (use) => use.name },
          { name: t("serving.requests"), end: true, show: (use) => number(use.requests, language) },
          {
            name: t("serving.prompt-tokens"),
            end: true,
            show: (use) => number(use.prompt_tokens, language),
          },
          {
            name: t("serving.cached-tokens"),
            end: true,
            show: (use) => number(use.cached_tokens, language),
          },
          {
            name: t("serving.completion-tokens"),
            end: true,
            show: (use) => number(use.completion_tokens, language),
          },
        ]}
      />
    </Card>
  );
}
