/** How the language models keep up. Live; the charts begin when the page is opened. */

import { useEffect, useRef, useState } from "react";
import { useLive } from "../api/live";
import type { ServedNow, ServingNow, UseView } from "../api/types";
import { useListing } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Notice,
  PageHead,
  ProblemNotice,
  Skeleton,
  Stat,
  Stats,
} from "../components/basic";
import { Chart } from "../components/chart";
import { Copy } from "../components/copy";
import { SelectField } from "../components/field";
import { type Column, Table } from "../components/table";
import { ENGINE_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";

const EVERY_S = 2;
const KEPT = 60;

export function Serving() {
  const t = useText();
  const { data, problem } = useLive<ServingNow>("serving");
  const models = Object.entries(data?.models ?? {});
  return (
    <div className="page">
      <PageHead title={t("serving.title")} about={t("serving.about")} />
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!data && !problem && <Skeleton lines={6} />}
      {data && models.length === 0 && (
        <Card>
          <Empty icon="serving" title={t("playground.empty")}>
            <p>{t("playground.empty.about")}</p>
            <Copy text="llmos up --model NAME" />
          </Empty>
        </Card>
      )}
      {models.map(([name, now]) => (
        <Served key={name} name={name} now={now} />
      ))}
      <Usage />
    </div>
  );
}

function Served({ name, now }: { name: string; now: ServedNow }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const history = useHistory(now);
  const points = history.map((_, at) => (history.length - 1 - at) * EVERY_S);
  const seconds = (value: number | undefined) =>
    value === undefined ? "–" : t("serving.seconds", { n: f.number(value, 2) });
  const { p50, p95 } = now.first_token_s;
  return (
    <Card
      title={name}
      actions={<Badge tone={ENGINE_STATES[now.state]}>{code("engine", now.state)}</Badge>}
    >
      <div className="stack">
        {now.reason && <Notice tone="bad">{now.reason}</Notice>}
        <Stats>
          <Stat name={t("serving.active")}>
            {t("serving.active.of", { n: f.number(now.active), slots: f.number(now.slots) })}
          </Stat>
          <Stat name={t("serving.queue")}>{f.number(now.queue)}</Stat>
          <Stat name={t("serving.speed")} note={t("serving.speed.note")}>
            {f.number(now.tokens_per_s, 1)}
          </Stat>
          <Stat
            name={t("serving.first")}
            note={p95 !== undefined && t("serving.first.p95", { s: seconds(p95) })}
          >
            {seconds(p50)}
          </Stat>
          <Stat name={t("serving.cache")}>
            {now.cache_lookups > 0 ? f.percent(now.cache_hits / now.cache_lookups) : "–"}
          </Stat>
          <Stat name={t("serving.requests")}>{f.number(now.requests)}</Stat>
        </Stats>
        <div className="columns">
          <Chart
            label={t("serving.speed")}
            across={t("serving.ago")}
            points={points}
            series={[{ name: t("serving.speed"), values: history.map((at) => at.tokens_per_s) }]}
            show={(value) => f.number(value, 1)}
            least={0}
          />
          <Chart
            label={t("serving.load")}
            across={t("serving.ago")}
            points={points}
            series={[
              { name: t("serving.active"), values: history.map((at) => at.active) },
              { name: t("serving.queue"), values: history.map((at) => at.queue) },
            ]}
            show={(value) => f.number(value)}
            least={0}
          />
        </div>
      </div>
    </Card>
  );
}

/** What was, at even distances: where nothing changes nothing is told, and time goes on. */
function useHistory(now: ServedNow): ServedNow[] {
  const [history, setHistory] = useState([now]);
  const newest = useRef(now);
  newest.current = now;
  useEffect(() => {
    const timer = setInterval(
      () => setHistory((before) => [...before.slice(1 - KEPT), newest.current]),
      EVERY_S * 1000,
    );
    return () => clearInterval(timer);
  }, []);
  return history;
}

const WAYS = ["key", "model", "day"] as const;
type Way = (typeof WAYS)[number];

function Usage() {
  const t = useText();
  const f = useFormat();
  const [by, setBy] = useState<Way>("key");
  const usage = useListing<UseView>("/api/v1/usage", { by });
  const counted = (id: string, head: string, count: (row: UseView) => number): Column<UseView> => ({
    id,
    head,
    cell: (row) => f.number(count(row)),
    sort: count,
    align: "right",
  });
  const columns: Column<UseView>[] = [
    { id: "name", head: t(`serving.by.${by}`), cell: (row) => row.name, sort: (row) => row.name },
    counted("requests", t("serving.requests"), (row) => row.requests),
    counted("prompt", t("serving.prompt"), (row) => row.prompt_tokens),
    counted("cached", t("serving.cached"), (row) => row.cached_tokens),
    counted("completion", t("serving.completion"), (row) => row.completion_tokens),
  ];
  return (
    <Card title={t("serving.usage")} about={t("serving.usage.about")}>
      <div className="stack">
        <SelectField
          label={t("serving.by")}
          value={by}
          options={WAYS.map((way) => ({ value: way, text: t(`serving.by.${way}`) }))}
          onChange={(way) => setBy(way as Way)}
        />
        <ProblemNotice problem={usage.problem} retry={usage.reload} />
        <Table
          label={t("serving.usage")}
          columns={columns}
          rows={usage.items}
          rowId={(row) => row.name}
          loading={usage.loading}
          onMore={usage.more ? usage.next : undefined}
          empty={<Empty icon="serving" title={t("serving.unused")} />}
        />
      </div>
    </Card>
  );
}
