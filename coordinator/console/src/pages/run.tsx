import { useState } from "react";
import { call, path } from "../api/client";
import type { Privacy, Round, RunState as State } from "../api/shapes";
import { Chart } from "../components/chart";
import {
  Badge,
  Bar,
  Button,
  Card,
  Confirm,
  Empty,
  Figure,
  Loading,
  Notice,
  PageHead,
  When,
} from "../components/parts";
import { Table } from "../components/table";
import { bytes, number, percent, short } from "../format";
import { useWords } from "../i18n";
import { linkTo } from "../router";
import { useMay, useTopic } from "../state";
import { accuracyOf, RunState } from "./runs";

/** How one run goes, and who could see what of it. */
export function RunPage({ run }: { run: string }) {
  const { t, language } = useWords();
  const { state, problem } = useTopic<State>(`run/${run}`);
  const mayWork = useMay("operator", "admin");
  const [stopping, setStopping] = useState(false);
  const summary = state?.summary;
  const open = summary?.state === "running" || summary?.state === "preparing";
  const rounds = Object.values(state?.rounds ?? {}).sort((one, other) => one.round - other.round);
  const accuracy = accuracyOf(summary?.accuracy);
  return (
    <>
      <PageHead
        title={
          <span className="row">
            {run} {summary && <RunState state={summary.state} />}
          </span>
        }
        about={
          <>
            <a href={linkTo("runs")}>{t("runs.title")}</a>
            {summary && (
              <>
                {" · "}
                {summary.task} · {t("runs.submitted")} <When at={summary.submitted_at} />
              </>
            )}
          </>
        }
      >
        {open && mayWork && (
          <Button tone="danger" onClick={() => setStopping(true)}>
            {t("run.stop")}
          </Button>
        )}
      </PageHead>
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!state && !problem && <Loading lines={6} />}
      {state && summary && (
        <div className="stack">
          {summary.reason && <Notice tone="warn">{summary.reason}</Notice>}
          <div className="figures">
            <Figure
              label={t("runs.rounds")}
              value={`${number(summary.round, language)} / ${number(summary.rounds, language)}`}
              note={<Bar share={summary.round / summary.rounds} label={t("runs.rounds")} />}
            />
            <Figure
              label={t("runs.accuracy")}
              value={accuracy === null ? "–" : percent(accuracy, language)}
              note={groupsOf(summary.accuracy, (share) => percent(share, language))}
            />
            <Figure
              label={t("run.epsilon")}
              value={epsilonOf(
                state.privacy,
                (value) => number(value, language, 2),
                t("runs.no-promise"),
              )}
              note={t("run.epsilon-note")}
            />
            <Figure
              label={t("run.bytes-in")}
              value={
                state.privacy.bytes.received === null || state.privacy.bytes.received === undefined
                  ? "–"
                  : bytes(state.privacy.bytes.received, language)
              }
            />
          </div>
          {state.now && open && <Now state={state} />}
          <Charts rounds={rounds} privacy={state.privacy} />
          <PrivacyCard privacy={state.privacy} />
          <Card title={t("run.rounds")}>
            <RoundTable rounds={rounds} />
          </Card>
          <Result state={state} />
        </div>
      )}
      {stopping && (
        <Confirm
          title={t("run.stop-title", { run })}
          action={t("run.stop")}
          onClose={() => setStopping(false)}
          onDo={() => call("POST", path`/api/v1/runs/${run}/stop`, {})}
        >
          {t("run.stop-about")}
        </Confirm>
      )}
    </>
  );
}

function groupsOf(accuracy: Record<string, number>, format: (share: number) => string): string {
  return Object.entries(accuracy)
    .filter(([group]) => group !== "")
    .map(([group, share]) => `${group} ${format(share)}`)
    .join(" · ");
}

function epsilonOf(privacy: Privacy, format: (value: number) => string, none: string): string {
  const { spent, planned } = privacy.epsilon;
  if (planned === null || planned === undefined) return none;
  return `${spent === null || spent === undefined ? "–" : format(spent)} / ${format(planned)}`;
}

/** The round under way. */
function Now({ state }: { state: State }) {
  const { t, code, language } = useWords();
  const now = state.now!;
  const steps: [string, number][] = [
    [t("run.committed"), now.committed],
    [t("run.updates"), now.updates],
  ];
  return (
    <Card
      title={t("run.now", { round: now.round })}
      aside={<Badge tone="busy">{code("round", now.state)}</Badge>}
    >
      <div className="figures">
        <Figure label={t("run.cohort")} value={number(now.cohort, language)} />
        {steps.map(([label, count]) => (
          <Figure
            key={label}
            label={label}
            value={`${number(count, language)} / ${number(now.cohort, language)}`}
            note={<Bar share={now.cohort ? count / now.cohort : 0} label={label} />}
          />
        ))}
        <Figure label={t("run.dropped")} value={number(now.declined, language)} />
        <Figure label={t("run.bytes-kept")} value={bytes(now.bytes, language)} />
      </div>
    </Card>
  );
}

function Charts({ rounds, privacy }: { rounds: Round[]; privacy: Privacy }) {
  const { t, language } = useWords();
  if (rounds.length === 0) return null;
  const places = rounds.map((round) => round.round);
  const groups = [...new Set(rounds.flatMap((round) => Object.keys(round.accuracy)))].sort();
  const received = rounds.map((round) => privacy.bytes.by_round[String(round.round)] ?? null);
  return (
    <div className="grid">
      <Card title={t("run.accuracy-by-round")}>
        <Chart
          title={t("run.accuracy-by-round")}
          places={places}
          series={groups.map((group) => ({
            name: group === "" ? t("run.everything") : group,
            values: rounds.map((round) => round.accuracy[group] ?? null),
          }))}
          format={(share) => percent(share, language)}
        />
      </Card>
      <Card title={t("run.loss-by-round")}>
        <Chart
          title={t("run.loss-by-round")}
          places={places}
          series={[{ name: t("run.loss"), values: rounds.map((round) => round.loss ?? null) }]}
          format={(value) => number(value, language, 3)}
        />
      </Card>
      <Card title={t("run.devices-by-round")}>
        <Chart
          title={t("run.devices-by-round")}
          places={places}
          bars
          series={[
            { name: t("run.counted"), values: rounds.map((round) => round.reported) },
            {
              name: t("run.dropped"),
              values: rounds.map((round) => round.invited - round.reported),
            },
          ]}
          format={(value) => number(value, language)}
        />
      </Card>
      {received.some((count) => count !== null) && (
        <Card title={t("run.bytes-by-round")}>
          <Chart
            title={t("run.bytes-by-round")}
            places={places}
            bars
            series={[{ name: t("run.bytes-in"), values: received }]}
            format={(count) => bytes(count, language)}
          />
        </Card>
      )}
    </div>
  );
}

/** Who could see what, what it cost, and what was checked. */
export function PrivacyCard({ privacy }: { privacy: Privacy }) {
  const { t, code } = useWords();
  return (
    <Card
      title={t("privacy.title")}
      aside={
        <Badge tone={privacy.scheme === "clear" ? "warn" : "good"}>
          {code("scheme", privacy.scheme)}
        </Badge>
      }
    >
      <div className="stack">
        <div className="parties">
          {privacy.parties.map((party) => (
            <div key={party.party} className="party">
              <h3>{code("party", party.party)}</h3>
              <ul>
                {party.sees.map((what) => (
                  <li key={what} className="sees">
                    <span className="only-read-out">{t("privacy.sees")}: </span>
                    {code("data", what)}
                  </li>
                ))}
                {party.never.map((what) => (
                  <li key={what} className="never">
                    <span className="only-read-out">{t("privacy.never")}: </span>
                    {t("privacy.not", { what: code("data", what) })}
                  </li>
                ))}
              </ul>
            </div>
          ))}
        </div>
        <Table
          caption={t("privacy.gates")}
          rows={privacy.gates}
          keyOf={(gate) => gate.gate}
          columns={[
            { name: t("privacy.gate"), show: (gate) => code("gate", gate.gate) },
            {
              name: t("privacy.result"),
              show: (gate) => (
                <Badge tone={gate.passed ? "good" : "warn"}>
                  {gate.passed ? t("privacy.passed") : t("privacy.not-passed")}
                </Badge>
              ),
            },
            { name: t("privacy.detail"), show: (gate) => gate.detail },
          ]}
        />
      </div>
    </Card>
  );
}

function RoundTable({ rounds }: { rounds: Round[] }) {
  const { t, code, language } = useWords();
  return (
    <Table
      caption={t("run.rounds")}
      rows={[...rounds].reverse()}
      keyOf={(round) => round.round}
      empty={<Empty title={t("run.no-rounds")}>{t("run.no-rounds-about")}</Empty>}
      columns={[
        { name: t("run.round"), show: (round) => round.round, end: true },
        { name: t("runs.state"), show: (round) => code("round", round.state) },
        { name: t("run.cohort"), show: (round) => number(round.invited, language), end: true },
        { name: t("run.counted"), show: (round) => number(round.reported, language), end: true },
        {
          name: t("run.dropped"),
          end: true,
          show: (round) => (
            <span
              title={Object.entries(round.declined)
                .map((each) => each.join(": "))
                .join("\n")}
            >
              {number(round.invited - round.reported, language)}
            </span>
          ),
        },
        {
          name: t("runs.accuracy"),
          end: true,
          show: (round) => {
            const accuracy = accuracyOf(round.accuracy);
            return accuracy === null ? "–" : percent(accuracy, language);
          },
        },
        {
          name: t("run.loss"),
          end: true,
          show: (round) => (typeof round.loss === "number" ? number(round.loss, language, 3) : "–"),
        },
        { name: t("run.reason"), show: (round) => round.reason },
        { name: t("run.changed"), show: (round) => <When at={round.changed_at} /> },
      ]}
    />
  );
}

function Result({ state }: { state: State }) {
  const { t } = useWords();
  const { adapter, release } = state.summary;
  if (!adapter) return null;
  const why = release.reason;
  return (
    <Card title={t("run.result")}>
      <dl className="facts">
        <dt>{t("run.adapter")}</dt>
        <dd className="mono" title={adapter}>
          {short(adapter)}
        </dd>
        <dt>{t("run.release")}</dt>
        <dd>
          {typeof release.manifest === "string" ? (
            <a href={linkTo("models")} className="mono">
              {short(release.manifest)}
            </a>
          ) : (
            String(why ?? t("run.not-yet"))
          )}
        </dd>
      </dl>
    </Card>
  );
}
