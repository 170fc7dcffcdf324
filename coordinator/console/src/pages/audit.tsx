import { useState } from "react";
import { call, type Page } from "../api/client";
import type { Alarm, AlarmsState, AuditRecord } from "../api/shapes";
import {
  Badge,
  Button,
  Card,
  Empty,
  Loading,
  PageHead,
  type Tone,
  useAction,
  useToast,
  When,
  Wrong,
} from "../components/parts";
import { Table } from "../components/table";
import { short } from "../format";
import { useWords } from "../i18n";
import { useMay, useRead, useTopic } from "../state";

const SEVERITIES: Record<string, Tone> = { info: "", warning: "warn", critical: "bad" };

/** What was noticed, and what was done by whom. */
export function AuditPage() {
  const { t } = useWords();
  const mayRead = useMay("auditor", "admin");
  const mayWatch = useMay("viewer", "operator", "admin");
  return (
    <>
      <PageHead title={t("audit.title")} about={t("audit.about")} />
      <div className="stack">
        {mayWatch && <Alarms />}
        {mayRead && <Log />}
      </div>
    </>
  );
}

function Alarms() {
  const { t, code } = useWords();
  const { state, problem } = useTopic<AlarmsState>("alarms");
  const say = useToast();
  const mayWork = useMay("operator", "admin");
  const seen = useAction(async (id: number) => {
    await call("POST", `/api/v1/alarms/${id}/acknowledge`);
    say(t("audit.acknowledged"));
  });
  if (problem) return null;
  const alarms = Object.values(state?.alarms ?? {}).sort(
    (one, other) => other.last_at - one.last_at,
  );
  return (
    <Card title={t("audit.alarms")}>
      <Wrong error={seen.error} />
      {!state ? (
        <Loading lines={2} />
      ) : (
        <Table<Alarm>
          caption={t("audit.alarms")}
          rows={alarms}
          keyOf={(alarm) => alarm.id}
          empty={<Empty title={t("audit.no-alarms")}>{t("audit.no-alarms-about")}</Empty>}
          columns={[
            {
              name: t("audit.severity"),
              show: (alarm) => (
                <Badge tone={SEVERITIES[alarm.severity] ?? ""}>
                  {code("severity", alarm.severity)}
                </Badge>
              ),
            },
            {
              name: t("audit.what"),
              show: (alarm) => (
                <>
                  {code("rule", alarm.rule)}
                  <div className="quiet">{alarm.detail}</div>
                </>
              ),
            },
            { name: t("audit.subject"), show: (alarm) => alarm.subject.name },
            { name: t("audit.count"), end: true, show: (alarm) => alarm.count },
            { name: t("audit.last"), show: (alarm) => <When at={alarm.last_at} /> },
            {
              name: t("audit.state"),
              show: (alarm) => (
                <span className="row">
                  {alarm.action === "quarantined" && (
                    <Badge tone="warn">{t("audit.quarantined")}</Badge>
                  )}
                  {alarm.acknowledged_at ? (
                    <span className="quiet">
                      {t("audit.seen-by", { name: alarm.acknowledged_by })}
                    </span>
                  ) : (
                    mayWork && (
                      <Button small busy={seen.busy} onClick={() => void seen.run(alarm.id)}>
                        {t("audit.acknowledge")}
                      </Button>
                    )
                  )}
                </span>
              ),
            },
          ]}
        />
      )}
    </Card>
  );
}

/** Which records are shown: those in which any of the words stands that were typed. */
export function recordsWith(records: AuditRecord[], wanted: string): AuditRecord[] {
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  return records.filter((record) => {
    const text = [record.actor, record.action, record.subject, JSON.stringify(record.facts)]
      .join(" ")
      .toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function Log() {
  const { t, code } = useWords();
  const [records, setRecords] = useState<AuditRecord[]>([]);
  const [next, setNext] = useState<string | null>(null);
  const [wanted, setWanted] = useState("");
  const first = useRead(async () => {
    const page = await call<Page<AuditRecord>>("GET", "/api/v1/audit?limit=200");
    setRecords(page.items);
    setNext(page.next);
    return page;
  });
  const more = useAction(async () => {
    const cursor = encodeURIComponent(next ?? "");
    const page = await call<Page<AuditRecord>>("GET", `/api/v1/audit?limit=200&cursor=${cursor}`);
    setRecords((before) => [...before, ...page.items]);
    setNext(page.next);
  });
  return (
    <Card
      title={t("audit.log")}
      aside={
        <input
          className="input"
          type="search"
          aria-label={t("audit.search")}
          placeholder={t("audit.search")}
          value={wanted}
          onChange={(event) => setWanted(event.target.value)}
        />
      }
    >
      <div className="stack">
        <p className="quiet">
          {t("audit.log-about")} <code>llmos audit verify</code>
        </p>
        <Wrong error={first.error ?? more.error} />
        <Table
          caption={t("audit.log")}
          rows={recordsWith(records, wanted)}
          keyOf={(record) => record.number}
          empty={<Empty title={t("audit.nothing")} />}
          columns={[
            { name: "#", end: true, show: (record) => record.number },
            { name: t("audit.when"), show: (record) => <When at={record.at} /> },
            { name: t("audit.who"), show: (record) => record.actor },
            { name: t("audit.what"), show: (record) => code("action", record.action) },
            { name: t("audit.subject"), show: (record) => record.subject },
            {
              name: t("audit.facts"),
              show: (record) => (
                <span className="quiet">
                  {Object.entries(record.facts)
                    .map(([name, value]) => `${name}: ${value}`)
                    .join(", ")}
                </span>
              ),
            },
            {
              name: t("audit.hash"),
              show: (record) => (
                <span className="mono" title={record.hash}>
                  {short(record.hash)}
                </span>
              ),
            },
          ]}
        />
        {next && (
          <div className="actions">
            <Button busy={more.busy} onClick={() => void more.run()}>
              {t("common.more")}
            </Button>
          </div>
        )}
      </div>
    </Card>
  );
}
