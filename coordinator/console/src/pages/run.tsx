/** One run as it goes: its round, what it learns, what it costs, who could see what. Live. */

import { useState } from "react";
import { api, part } from "../api/api";
import { useLive } from "../api/live";
import type { RoundNow, RoundView, RunNow, RunSummary } from "../api/types";
import { useAction } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Facts,
  Notice,
  PageHead,
  Progress,
  Skeleton,
  Stat,
  Stats,
  Time,
} from "../components/basic";
import { Button } from "../components/button";
import { Chart, type Series } from "../components/chart";
import { ConfirmDialog } from "../components/dialog";
import { TextField } from "../components/field";
import { PrivacyCard } from "../components/privacy_card";
import { type Column, Table } from "../components/table";
import { toast } from "../components/toast";
import { ROUND_STATES, RUN_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address } from "../lib/router";
import { useMay } from "../lib/session";

const ENDED = ["finished", "failed", "stopped"];
const ROUND_ENDED = ["applied", "failed"];
/** More lines than this nobody can tell apart. */
const MOST_GROUPS = 4;

export function Run({ run }: { run: string }) {
  const t = useText();
  const code = useCode();
  const mayStop = useMay("operator", "admin");
  const { data, problem } = useLive<RunNow>(`run/${run}`);
  const [stopping, setStopping] = useState(false);
  const state = data?.summary.state ?? "";
  const open = data !== null && !ENDED.includes(state);
  return (
    <div className="page">
      <PageHead
        title={run}
        up={{ href: address("runs"), text: t("runs.title") }}
        badge={data && <Badge tone={RUN_STATES[state]}>{code("run-state", state)}</Badge>}
        about={data && code("task", data.summary.task)}
        actions={
          open &&
          mayStop && (
            <Button kind="danger" onClick={() => setStopping(true)}>
              {t("run.stop")}
            </Button>
          )
        }
      />
      {problem && <Notice tone="bad">{problem}</Notice>}
      {data ? <Shown data={data} /> : !problem && <Skeleton lines={10} />}
      {stopping && <Stop run={run} onClose={() => setStopping(false)} />}
    </div>
  );
}

function Stop({ run, onClose }: { run: string; onClose: () => void }) {
  const t = useText();
  const [reason, setReason] = useState("");
  const stopping = useAction(async () => {
    await api.post(`/api/v1/runs/${part(run)}/stop`, reason.trim() ? { reason } : {});
    toast(t("run.stop.asked", { run }));
    onClose();
  });
  return (
    <ConfirmDialog
      title={t("run.stop.title", { run })}
      confirm={t("run.stop")}
      danger
      busy={stopping.busy}
      problem={stopping.problem}
      onConfirm={stopping.run}
      onClose={onClose}
    >
      <p>{t("run.stop.about")}</p>
      <TextField
        label={t("run.stop.reason")}
        placeholder={t("run.stop.default")}
        value={reason}
        onChange={setReason}
      />
    </ConfirmDialog>
  );
}

function Shown({ data }: { data: RunNow }) {
  const t = useText();
  const { summary } = data;
  const rounds = Object.values(data.rounds).sort((a, b) => a.round - b.round);
  return (
    <>
      {summary.reason && (
        <Notice tone={summary.state === "failed" ? "bad" : "warn"}>{summary.reason}</Notice>
      )}
      <Totals data={data} />
      {!ENDED.includes(summary.state) && <Round now={data.now ?? null} />}
      <Charts rounds={rounds} bytes={data.privacy?.bytes.by_round ?? {}} />
      {data.privacy ? (
        <PrivacyCard privacy={data.privacy} />
      ) : (
        <Card title={t("privacy.title")} about={t("privacy.about")}>
          <p className="soft">{t("privacy.none")}</p>
        </Card>
      )}
      <Rounds rounds={rounds} />
      <Release summary={summary} />
    </>
  );
}

function Totals({ data }: { data: RunNow }) {
  const t = useText();
  const f = useFormat();
  const { summary, privacy } = data;
  const accuracy = summary.accuracy[""];
  const spent = privacy?.epsilon.spent;
  const planned = privacy?.epsilon.planned ?? summary.epsilon;
  return (
    <Stats>
      <Stat name={t("runs.progress")}>
        {t("runs.round-of", { round: f.number(summary.round), rounds: f.number(summary.rounds) })}
      </Stat>
      <Stat name={t("run.best")} note={t("run.best.note")}>
        {accuracy === undefined ? "–" : f.percent(accuracy)}
      </Stat>
      <Stat
        name={t("run.spent")}
        note={planned == null ? undefined : t("run.spent.of", { planned: f.number(planned, 2) })}
      >
        {planned == null ? "∞" : spent == null ? "–" : f.number(spent, 2)}
      </Stat>
      <Stat name={t("run.received")} note={t("run.received.note")}>
        {privacy?.bytes.received == null ? "–" : f.bytes(privacy.bytes.received)}
      </Stat>
      <Stat name={t("runs.submitted")}>
        <Time at={summary.submitted_at} />
      </Stat>
      {summary.ended_at != null && (
        <Stat name={t("run.ended")}>
          <Time at={summary.ended_at} />
        </Stat>
      )}
    </Stats>
  );
}

function Round({ now }: { now: RoundNow | null }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  if (!now) {
    return (
      <Card title={t("run.now.none")}>
        <p className="soft">{t("run.rounds.empty.about")}</p>
      </Card>
    );
  }
  return (
    <Card
      title={t("run.now", { round: now.round })}
      actions={
        <Badge tone={ROUND_STATES[now.state] ?? "accent"}>{code("round-state", now.state)}</Badge>
      }
    >
      <div className="stack">
        <Progress
          label={t("run.now.of", { n: f.number(now.updates), all: f.number(now.cohort) })}
          done={now.updates}
          of={now.cohort}
        />
        <Facts
          wide
          of={[
            [t("run.now.cohort"), f.number(now.cohort)],
            [t("run.now.committed"), f.number(now.committed)],
            [t("run.now.updates"), f.number(now.updates)],
            [t("run.now.declined"), f.number(now.declined)],
            [t("run.now.bytes"), f.bytes(now.bytes)],
            [t("run.now.changed"), <Time key="changed" at={now.changed_at} />],
          ]}
        />
      </div>
    </Card>
  );
}

function Charts({ rounds, bytes }: { rounds: RoundView[]; bytes: Record<string, number> }) {
  const t = useText();
  const f = useFormat();
  const ended = rounds.filter((each) => ROUND_ENDED.includes(each.state));
  const judged = ended.filter((each) => each.accuracy[""] !== undefined);
  const groups = [...new Set(judged.flatMap((each) => Object.keys(each.accuracy)))]
    .filter((group) => group !== "")
    .sort();
  const accuracy: Series[] = [
    { name: t("run.whole"), values: judged.map((each) => each.accuracy[""] ?? null) },
  ];
  if (judged.some((each) => each.evaluated.score !== undefined)) {
    accuracy.push({
      name: t("run.held-out"),
      values: judged.map((each) => each.evaluated.score ?? null),
      dashed: true,
    });
  }
  if (groups.length > 1) {
    for (const group of groups.slice(0, MOST_GROUPS)) {
      accuracy.push({ name: group, values: judged.map((each) => each.accuracy[group] ?? null) });
    }
  }
  const received = ended.filter((each) => bytes[each.round] !== undefined);
  const drawn = (some: RoundView[], chart: React.ReactNode) =>
    some.length > 0 ? chart : <p className="soft">{t("run.charts.wait")}</p>;
  const numbers = (some: RoundView[]) => some.map((each) => each.round);
  const declined = (each: RoundView) => Object.keys(each.declined).length;
  return (
    <div className="columns">
      <Card title={t("run.charts.accuracy")} about={t("run.charts.accuracy.about")}>
        {drawn(
          judged,
          <Chart
            label={t("run.charts.accuracy")}
            across={t("run.round")}
            points={numbers(judged)}
            series={accuracy}
            show={f.percent}
            axis={(value) => f.percent(value, 0)}
            least={0}
            most={1}
          />,
        )}
      </Card>
      <Card title={t("run.charts.loss")}>
        {drawn(
          judged,
          <Chart
            label={t("run.charts.loss")}
            across={t("run.round")}
            points={numbers(judged)}
            series={[{ name: t("run.loss"), values: judged.map((each) => each.loss ?? null) }]}
            show={(value) => f.number(value, 3)}
          />,
        )}
      </Card>
      <Card title={t("run.charts.drop-outs")} about={t("run.charts.drop-outs.about")}>
        {drawn(
          ended,
          <Chart
            label={t("run.charts.drop-outs")}
            across={t("run.round")}
            points={numbers(ended)}
            least={0}
            show={(value) => f.number(value)}
            series={[
              {
                name: t("run.reported"),
                kind: "bar",
                stack: "devices",
                values: ended.map((each) => each.reported),
              },
              {
                name: t("run.declined"),
                kind: "bar",
                stack: "devices",
                values: ended.map(declined),
              },
              {
                name: t("run.dropped"),
                kind: "bar",
                stack: "devices",
                values: ended.map(dropped),
              },
            ]}
          />,
        )}
      </Card>
      <Card title={t("run.charts.bytes")}>
        {drawn(
          received,
          <Chart
            label={t("run.charts.bytes")}
            across={t("run.round")}
            points={numbers(received)}
            least={0}
            show={f.bytes}
            series={[
              {
                name: t("run.bytes"),
                kind: "bar",
                values: received.map((each) => bytes[each.round] ?? null),
              },
            ]}
          />,
        )}
      </Card>
    </div>
  );
}

/** Devices that were invited and neither declined nor sent an update. */
export function dropped(round: RoundView): number {
  return Math.max(0, round.invited - round.reported - Object.keys(round.declined).length);
}

function Rounds({ rounds }: { rounds: RoundView[] }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const columns: Column<RoundView>[] = [
    {
      id: "round",
      head: t("run.round"),
      cell: (row) => f.number(row.round),
      sort: (row) => row.round,
    },
    {
      id: "state",
      head: t("runs.state"),
      cell: (row) => (
        <Badge tone={ROUND_STATES[row.state] ?? "accent"}>{code("round-state", row.state)}</Badge>
      ),
    },
    {
      id: "accuracy",
      head: t("runs.accuracy"),
      cell: (row) => (row.accuracy[""] === undefined ? "–" : f.percent(row.accuracy[""])),
      sort: (row) => row.accuracy[""] ?? -1,
      align: "right",
    },
    {
      id: "accepted",
      head: t("run.accepted"),
      cell: (row) =>
        row.accepted == null ? (
          "–"
        ) : row.accepted ? (
          t("run.accepted.yes")
        ) : (
          <Badge tone="warn">{t("run.accepted.no")}</Badge>
        ),
    },
    {
      id: "reported",
      head: t("run.reported"),
      cell: (row) =>
        t("runs.round-of", { round: f.number(row.reported), rounds: f.number(row.invited) }),
      align: "right",
    },
    {
      id: "declined",
      head: t("run.declined"),
      cell: (row) => (
        <span
          title={
            Object.entries(row.declined)
              .map(([device, reason]) => `${device}: ${reason}`)
              .join("\n") || undefined
          }
        >
          {f.number(Object.keys(row.declined).length)}
        </span>
      ),
      align: "right",
    },
    {
      id: "saturated",
      head: t("run.saturated"),
      cell: (row) => (row.saturated == null ? "–" : f.percent(row.saturated)),
      align: "right",
    },
    {
      id: "took",
      head: t("run.took"),
      cell: (row) => f.duration(row.changed_at - row.began_at),
      sort: (row) => row.changed_at - row.began_at,
      align: "right",
    },
    { id: "why", head: t("run.why"), cell: (row) => row.reason },
  ];
  return (
    <Card title={t("run.rounds")} flush>
      <Table
        label={t("run.rounds")}
        columns={columns}
        rows={[...rounds].reverse()}
        rowId={(row) => String(row.round)}
        empty={
          <Empty icon="runs" title={t("run.rounds.empty")}>
            <p>{t("run.rounds.empty.about")}</p>
          </Empty>
        }
      />
    </Card>
  );
}

function Release({ summary }: { summary: RunSummary }) {
  const t = useText();
  const f = useFormat();
  const { manifest, accuracy, reason } = summary.release as {
    manifest?: string;
    accuracy?: number | null;
    reason?: string;
  };
  if (!manifest && !reason) return null;
  return (
    <Card title={t("run.release")}>
      {manifest ? (
        <Facts
          of={[
            [
              t("run.release.yes"),
              accuracy == null ? "" : t("run.release.accuracy", { accuracy: f.percent(accuracy) }),
            ],
            [t("device.answers.adapter"), <code key="adapter">{summary.adapter}</code>],
            [t("device.answers.manifest"), <code key="manifest">{manifest}</code>],
          ]}
        />
      ) : (
        <Facts of={[[t("run.release.no"), reason]]} />
      )}
    </Card>
  );
}
