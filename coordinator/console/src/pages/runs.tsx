import type { RunSummary, RunsState } from "../api/shapes";
import { Badge, Bar, Empty, Loading, Notice, PageHead, type Tone, When } from "../components/parts";
import { Table } from "../components/table";
import { number, percent } from "../format";
import { useWords } from "../i18n";
import { linkTo } from "../router";
import { useMay, useTopic } from "../state";

const TONES: Record<string, Tone> = {
  preparing: "busy",
  running: "busy",
  finished: "good",
  failed: "bad",
  stopped: "warn",
};

export function RunState({ state }: { state: string }) {
  const { code } = useWords();
  return <Badge tone={TONES[state] ?? ""}>{code("run", state)}</Badge>;
}

/** The accuracy over the whole probe set, as last judged. */
export function accuracyOf(groups: Record<string, number> | undefined): number | null {
  return groups?.[""] ?? null;
}

/** What the fleet learns and has learnt. */
export function RunsPage() {
  const { t, language } = useWords();
  const { state, problem } = useTopic<RunsState>("runs");
  const mayWork = useMay("operator", "admin");
  const runs = Object.values(state?.runs ?? {}).sort(
    (one, other) => other.submitted_at - one.submitted_at,
  );
  return (
    <>
      <PageHead title={t("runs.title")} about={t("runs.about")}>
        {mayWork && (
          <a className="button main" href={linkTo("runs", "new")}>
            {t("runs.new")}
          </a>
        )}
      </PageHead>
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!state && !problem && <Loading />}
      {state && (
        <Table<RunSummary>
          caption={t("runs.title")}
          rows={runs}
          keyOf={(run) => run.run}
          empty={
            <Empty title={t("runs.none")} command="llmos run submit job.toml">
              {t("runs.none-about")}
            </Empty>
          }
          columns={[
            { name: t("runs.run"), show: (run) => <a href={linkTo("runs", run.run)}>{run.run}</a> },
            { name: t("runs.state"), show: (run) => <RunState state={run.state} /> },
            { name: t("runs.task"), show: (run) => run.task },
            {
              name: t("runs.rounds"),
              show: (run) => (
                <div className="stack tight">
                  <span className="number">
                    {number(run.round, language)} / {number(run.rounds, language)}
                  </span>
                  <Bar share={run.round / run.rounds} label={t("runs.rounds")} />
                </div>
              ),
            },
            {
              name: t("runs.accuracy"),
              end: true,
              show: (run) => {
                const accuracy = accuracyOf(run.accuracy);
                return accuracy === null ? "–" : percent(accuracy, language);
              },
            },
            {
              name: "ε",
              end: true,
              show: (run) =>
                run.epsilon === null || run.epsilon === undefined
                  ? t("runs.no-promise")
                  : number(run.epsilon, language, 2),
            },
            { name: t("runs.submitted"), show: (run) => <When at={run.submitted_at} /> },
          ]}
        />
      )}
    </>
  );
}
