/** All runs, newest first. Live. */

import { useLive } from "../api/live";
import type { RunSummary, RunsNow } from "../api/types";
import { useListing } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Notice,
  PageHead,
  ProblemNotice,
  Progress,
  Time,
} from "../components/basic";
import { Copy } from "../components/copy";
import { type Column, Table } from "../components/table";
import { RUN_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address, go } from "../lib/router";
import { useMay } from "../lib/session";
import { NEW_RUN } from "./submit";

export function Runs() {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const maySubmit = useMay("operator", "admin");
  const { data, problem } = useLive<RunsNow>("runs");
  // The feed has the newest and the open ones; older ones come in pages.
  const listed = useListing<RunSummary>("/api/v1/runs");
  const known = new Map(listed.items.map((each) => [each.run, each]));
  for (const [id, summary] of Object.entries(data?.runs ?? {})) known.set(id, summary);
  const rows = [...known.values()].sort((a, b) => b.submitted_at - a.submitted_at);

  const columns: Column<RunSummary>[] = [
    {
      id: "run",
      head: t("runs.run"),
      cell: (row) => <a href={address("runs", row.run)}>{row.run}</a>,
      sort: (row) => row.run,
    },
    {
      id: "state",
      head: t("runs.state"),
      cell: (row) => (
        <span title={row.reason || undefined}>
          <Badge tone={RUN_STATES[row.state]}>{code("run-state", row.state)}</Badge>
        </span>
      ),
      sort: (row) => row.state,
    },
    {
      id: "progress",
      head: t("runs.progress"),
      cell: (row) => (
        <Progress
          label={t("runs.round-of", { round: row.round, rounds: row.rounds })}
          done={row.round}
          of={row.rounds}
        />
      ),
      sort: (row) => row.round / row.rounds,
    },
    {
      id: "accuracy",
      head: t("runs.accuracy"),
      cell: (row) => (row.accuracy[""] === undefined ? "–" : f.percent(row.accuracy[""])),
      sort: (row) => row.accuracy[""] ?? -1,
      align: "right",
    },
    {
      id: "epsilon",
      head: t("runs.epsilon"),
      cell: (row) => (row.epsilon == null ? t("runs.no-noise") : f.number(row.epsilon, 2)),
      sort: (row) => row.epsilon ?? Number.POSITIVE_INFINITY,
      align: "right",
    },
    { id: "task", head: t("runs.task"), cell: (row) => code("task", row.task) },
    {
      id: "submitted",
      head: t("runs.submitted"),
      cell: (row) => <Time at={row.submitted_at} />,
      sort: (row) => row.submitted_at,
    },
  ];
  const submit = maySubmit && (
    <a className="button" data-kind="primary" href={address("runs", NEW_RUN)}>
      {t("runs.new")}
    </a>
  );
  return (
    <div className="page">
      <PageHead
        title={t("runs.title")}
        about={t("runs.about")}
        actions={rows.length > 0 && submit}
      />
      {problem && <Notice tone="bad">{problem}</Notice>}
      <ProblemNotice problem={listed.problem} retry={listed.reload} />
      {(rows.length > 0 || !listed.problem) && (
        <Card flush>
          <Table
            label={t("runs.title")}
            columns={columns}
            rows={rows}
            rowId={(row) => row.run}
            loading={listed.loading}
            onOpen={(row) => go("runs", row.run)}
            onMore={listed.more ? listed.next : undefined}
            empty={
              <Empty icon="runs" title={t("runs.empty")}>
                <p>{maySubmit ? t("runs.empty.about") : t("runs.empty.viewer")}</p>
                {maySubmit && <Copy text="llmos run submit job.toml --probe probe.csv" />}
                {submit}
              </Empty>
            }
          />
        </Card>
      )}
    </div>
  );
}
