/** Devices: who is there, and what they do now. Live. */

import { useLive } from "../api/live";
import type { DeviceSummary, FleetNow } from "../api/types";
import {
  Badge,
  Card,
  Empty,
  Notice,
  PageHead,
  Skeleton,
  Stat,
  Stats,
  Time,
  type Tone,
} from "../components/basic";
import { Copy } from "../components/copy";
import { type Column, Table } from "../components/table";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";

export const STATES: Record<string, Tone> = { idle: "good", training: "accent" };

export function Fleet() {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const { data, problem } = useLive<FleetNow>("fleet");
  const devices = Object.values(data?.devices ?? {});
  const columns: Column<DeviceSummary>[] = [
    { id: "name", head: t("fleet.name"), cell: (row) => row.name, sort: (row) => row.name },
    {
      id: "state",
      head: t("fleet.state"),
      cell: (row) => <Badge tone={STATES[row.state]}>{code("state", row.state)}</Badge>,
      sort: (row) => row.state,
    },
    {
      id: "fingerprint",
      head: t("fleet.fingerprint"),
      cell: (row) => <code>{row.fingerprint}</code>,
    },
    {
      id: "joined",
      head: t("fleet.joined"),
      cell: (row) => <Time at={row.joined_at} />,
      sort: (row) => row.joined_at,
    },
  ];
  return (
    <div className="page">
      <PageHead title={t("fleet.title")} about={t("fleet.about")} />
      {problem && <Notice tone="bad">{problem}</Notice>}
      {data && devices.length > 0 && (
        <Stats>
          <Stat name={t("fleet.all")}>{f.number(devices.length + (data.more ?? 0))}</Stat>
          {Object.entries(data.counts).map(([state, count]) => (
            <Stat key={state} name={code("state", state)}>
              {f.number(count)}
            </Stat>
          ))}
        </Stats>
      )}
      <Card flush>
        {data ? (
          <Table
            label={t("fleet.title")}
            columns={columns}
            rows={devices}
            rowId={(row) => row.name}
            empty={
              <Empty icon="fleet" title={t("fleet.empty")}>
                <p>{t("fleet.empty.about")}</p>
                <Copy text="llmos device token" />
              </Empty>
            }
          />
        ) : (
          <Skeleton lines={6} />
        )}
      </Card>
    </div>
  );
}
