/** Alarms: what the rules found, until somebody has looked at it. */

import { type ReactNode, useState } from "react";
import { api } from "../api/api";
import { useLive } from "../api/live";
import type { Alarm, AlarmsNow } from "../api/types";
import { type Listing, useAction, useListing } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Notice,
  PageHead,
  ProblemNotice,
  Skeleton,
  Time,
} from "../components/basic";
import { Button } from "../components/button";
import { CheckField } from "../components/field";
import { type Column, Table } from "../components/table";
import { SEVERITIES } from "../components/tones";
import { useCode, useText } from "../lib/i18n";
import { address } from "../lib/router";
import { AUDITING, READING, useMay } from "../lib/session";

const PATH = "/api/v1/alarms";

export function Alarms() {
  const t = useText();
  const isLive = useMay(...READING);
  const [all, setAll] = useState(false);
  return (
    <div className="page">
      <PageHead title={t("alarms.title")} about={t("alarms.about")} />
      {isLive ? <OpenLive /> : <Listed title={t("alarms.open")} open />}
      <CheckField label={t("alarms.all")} checked={all} onChange={setAll} />
      {all && <Listed title={t("alarms.everything")} />}
    </div>
  );
}

/** Open ones as they come and go. */
function OpenLive() {
  const t = useText();
  const { data, problem } = useLive<AlarmsNow>("alarms");
  if (problem) return <Notice tone="bad">{problem}</Notice>;
  if (!data) return <Skeleton lines={4} />;
  const alarms = Object.values(data.alarms).sort((one, other) => other.id - one.id);
  const more = data.open - alarms.length;
  return (
    <Card title={t("alarms.open")} about={t("alarms.open.about")} flush>
      <AlarmTable label={t("alarms.open")} alarms={alarms} />
      {more > 0 && <Notice>{t("alarms.more", { n: more })}</Notice>}
    </Card>
  );
}

/** As they were when they were asked for: an auditor has no live feed. */
function Listed(props: { title: string; open?: boolean }) {
  const query = props.open ? { open: true, limit: 100 } : { limit: 100 };
  const listing = useListing<Alarm>(PATH, query);
  return (
    <Card title={props.title} flush>
      <ProblemNotice problem={listing.problem} retry={listing.reload} />
      <AlarmTable label={props.title} alarms={listing.items} listing={listing} />
    </Card>
  );
}

function AlarmTable(props: { label: string; alarms: Alarm[]; listing?: Listing<Alarm> }) {
  const t = useText();
  const code = useCode();
  const mayAcknowledge = useMay("operator", "admin");
  const acknowledging = useAction(async (alarm: Alarm) => {
    await api.post<Alarm>(`${PATH}/${alarm.id}/acknowledge`, {});
    props.listing?.reload();
  });
  const columns: Column<Alarm>[] = [
    {
      id: "severity",
      head: t("alarms.severity"),
      cell: (row) => (
        <Badge tone={SEVERITIES[row.severity]}>{code("severity", row.severity)}</Badge>
      ),
      sort: (row) => row.severity,
    },
    {
      id: "rule",
      head: t("alarms.rule"),
      cell: (row) => <Found alarm={row} />,
      sort: (row) => row.rule,
    },
    {
      id: "subject",
      head: t("alarms.subject"),
      cell: (row) => <Subject of={row} />,
      sort: (row) => row.subject.name,
    },
    {
      id: "times",
      head: t("alarms.times"),
      cell: (row) => row.count,
      sort: (row) => row.count,
      align: "right",
    },
    {
      id: "last",
      head: t("alarms.last"),
      cell: (row) => (
        <>
          <Time at={row.last_at} />
          {row.count > 1 && (
            <div className="soft small">
              {t("alarms.first")} <Time at={row.first_at} />
            </div>
          )}
        </>
      ),
      sort: (row) => row.last_at,
    },
    { id: "state", head: t("alarms.state"), cell: (row) => <State of={row} /> },
  ];
  if (mayAcknowledge) {
    columns.push({
      id: "acknowledge",
      head: t("alarms.acknowledge"),
      cell: (row) =>
        row.acknowledged_at == null && (
          <Button
            label={t("alarms.acknowledge.one", { n: row.id })}
            busy={acknowledging.busy}
            onClick={() => acknowledging.run(row)}
          >
            {t("alarms.acknowledge")}
          </Button>
        ),
    });
  }
  return (
    <>
      <ProblemNotice problem={acknowledging.problem} />
      <Table
        label={props.label}
        columns={columns}
        rows={props.alarms}
        rowId={(row) => String(row.id)}
        loading={props.listing?.loading ?? false}
        onMore={props.listing?.more ? props.listing.next : undefined}
        empty={
          <Empty icon="alarms" title={t("alarms.none")}>
            <p>{t("alarms.none.about")}</p>
          </Empty>
        }
      />
    </>
  );
}

/** A rule by its name, what it means and what it saw last; of a newer coordinator's, its code. */
function Found({ alarm: { rule, detail } }: { alarm: Alarm }) {
  const code = useCode();
  const about = code("rule-about", rule);
  return (
    <>
      <b>{code("rule", rule)}</b>
      {about !== rule && <div className="small">{about}</div>}
      {detail && <div className="soft small break">{detail}</div>}
    </>
  );
}

/** What an alarm is about, with a way to the page where something can be done about it. */
function Subject({ of: { subject } }: { of: Alarm }): ReactNode {
  const t = useText();
  const code = useCode();
  const reads = useMay(...READING);
  const audits = useMay(...AUDITING);
  if (subject.name === "") return t("alarms.everybody");
  const pages: Record<string, string> = {
    ...(reads && { device: address("fleet", subject.name), run: address("runs", subject.name) }),
    ...(audits && { key: address("keys") }),
  };
  const page = pages[subject.kind];
  return (
    <>
      <span className="soft small">{code("about", subject.kind)}</span>{" "}
      {page ? (
        <a className="break" href={page}>
          {subject.name}
        </a>
      ) : (
        <span className="break">{subject.name}</span>
      )}
    </>
  );
}

function State({ of: alarm }: { of: Alarm }) {
  const t = useText();
  const seen = alarm.acknowledged_at != null;
  return (
    <>
      {seen ? t("alarms.seen", { name: alarm.acknowledged_by }) : t("alarms.is-open")}
      {alarm.action === "quarantined" && (
        <div className="small">
          <Badge tone="warn">{t("alarms.quarantined")}</Badge>
        </div>
      )}
    </>
  );
}
