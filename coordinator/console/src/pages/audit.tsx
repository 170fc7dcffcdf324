/** The audit log: what was done, and by whom, newest first. */

import { useState } from "react";
import type { AuditRecord } from "../api/types";
import { useListing } from "../api/use_resource";
import { Card, Empty, PageHead, ProblemNotice, Time, withCode } from "../components/basic";
import { TextField } from "../components/field";
import { type Column, Table } from "../components/table";
import { useCode, useText } from "../lib/i18n";

/** Those in which every word that was typed stands somewhere. */
export function recordsWith(
  records: AuditRecord[],
  wanted: string,
  said: (record: AuditRecord) => string,
): AuditRecord[] {
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  return records.filter((record) => {
    const { actor, action, subject, facts } = record;
    const text = [actor, action, subject, said(record), factsOf(facts)].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function factsOf(facts: AuditRecord["facts"]): string {
  return Object.entries(facts)
    .map(([name, value]) => `${name}: ${value}`)
    .join(", ");
}

export function Audit() {
  const t = useText();
  const code = useCode();
  const [wanted, setWanted] = useState("");
  const records = useListing<AuditRecord>("/api/v1/audit", { order: "newest", limit: 100 });
  const said = (record: AuditRecord) => code("action", record.action);
  const columns: Column<AuditRecord>[] = [
    { id: "number", head: t("audit.number"), cell: (row) => row.number, align: "right" },
    { id: "when", head: t("audit.when"), cell: (row) => <Time at={row.at} /> },
    { id: "who", head: t("audit.who"), cell: (row) => row.actor },
    { id: "what", head: t("audit.what"), cell: said },
    { id: "subject", head: t("audit.subject"), cell: (row) => row.subject },
    {
      id: "facts",
      head: t("audit.facts"),
      cell: (row) => <span className="soft small break">{factsOf(row.facts)}</span>,
    },
    {
      id: "hash",
      head: t("audit.hash"),
      cell: (row) => <code title={row.hash}>{row.hash.slice(0, 12)}</code>,
    },
  ];
  return (
    <div className="page">
      <PageHead title={t("audit.title")} about={t("audit.about")} />
      <ProblemNotice problem={records.problem} retry={records.reload} />
      <TextField label={t("audit.search")} value={wanted} onChange={setWanted} />
      <Card title={t("audit.log")} about={withCode(t("audit.log.about"))} flush>
        <Table
          label={t("audit.log")}
          columns={columns}
          rows={recordsWith(records.items, wanted, said)}
          rowId={(row) => String(row.number)}
          loading={records.loading}
          onMore={records.more ? records.next : undefined}
          empty={<Empty icon="audit" title={t("audit.empty")} />}
        />
      </Card>
    </div>
  );
}
