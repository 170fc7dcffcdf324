/** Devices: who is there, and what they do now. Live. */

import { useState } from "react";
import { api } from "../api/api";
import { useLive } from "../api/live";
import type { DeviceSummary, FleetNow } from "../api/types";
import { useAction } from "../api/use_resource";
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
  Time,
  withCode,
} from "../components/basic";
import { Button } from "../components/button";
import { Copy } from "../components/copy";
import { Dialog } from "../components/dialog";
import { type Column, Table } from "../components/table";
import { STANDINGS, STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address, go } from "../lib/router";
import { useMay } from "../lib/session";

const TOKEN_VALID_S = 900;

interface NewToken {
  token: string;
  expires_at: number;
}

/** Why a device would decline an invitation now, as far as it has told. */
export function Condition({ of: { condition } }: { of: Pick<DeviceSummary, "condition"> }) {
  const t = useText();
  const code = useCode();
  if (condition == null) return <span className="soft">{t("fleet.untold")}</span>;
  if (condition === "") return t("fleet.willing");
  return <Badge tone="warn">{code("condition", condition)}</Badge>;
}

export function Fleet() {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const mayJoin = useMay("operator", "admin");
  const { data, problem } = useLive<FleetNow>("fleet");
  const [token, setToken] = useState<NewToken | null>(null);
  const making = useAction(async () => {
    setToken(await api.post<NewToken>("/api/v1/devices/tokens", { valid_s: TOKEN_VALID_S }));
  });
  const devices = Object.values(data?.devices ?? {});
  const more = data?.more ?? 0;
  const columns: Column<DeviceSummary>[] = [
    {
      id: "name",
      head: t("fleet.name"),
      cell: (row) => <a href={address("fleet", row.name)}>{row.name}</a>,
      sort: (row) => row.name,
    },
    {
      id: "state",
      head: t("fleet.state"),
      cell: (row) => <Badge tone={STATES[row.state]}>{code("state", row.state)}</Badge>,
      sort: (row) => row.state,
    },
    {
      id: "standing",
      head: t("fleet.standing"),
      cell: (row) => <Badge tone={STANDINGS[row.standing]}>{code("standing", row.standing)}</Badge>,
      sort: (row) => row.standing,
    },
    {
      id: "condition",
      head: t("fleet.condition"),
      cell: (row) => <Condition of={row} />,
      sort: (row) => row.condition ?? "",
    },
    {
      id: "budget",
      head: t("fleet.budget"),
      cell: (row) =>
        row.budget_left == null ? (
          <span className="soft">{t("fleet.untold")}</span>
        ) : (
          f.number(row.budget_left, 2)
        ),
      sort: (row) => row.budget_left ?? Number.POSITIVE_INFINITY,
      align: "right",
    },
    {
      id: "version",
      head: t("fleet.version"),
      cell: (row) => row.version ?? <span className="soft">{t("fleet.untold")}</span>,
      sort: (row) => row.version ?? "",
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
  const join = mayJoin && (
    <Button kind="primary" busy={making.busy} onClick={making.run}>
      {t("fleet.token")}
    </Button>
  );
  return (
    <div className="page">
      <PageHead
        title={t("fleet.title")}
        about={t("fleet.about")}
        actions={devices.length > 0 && join}
      />
      {problem && <Notice tone="bad">{problem}</Notice>}
      <ProblemNotice problem={making.problem} />
      {devices.length > 0 && (
        <Stats>
          <Stat name={t("fleet.all")}>{f.number(devices.length + more)}</Stat>
          {Object.entries(data?.counts ?? {}).map(([state, count]) => (
            <Stat key={state} name={code("state", state)}>
              {f.number(count)}
            </Stat>
          ))}
        </Stats>
      )}
      {(data || !problem) && (
        <Card flush>
          {data ? (
            <Table
              label={t("fleet.title")}
              columns={columns}
              rows={devices}
              rowId={(row) => row.name}
              onOpen={(row) => go("fleet", row.name)}
              empty={
                <Empty icon="fleet" title={t("fleet.empty")}>
                  <p>{withCode(t("fleet.empty.about"))}</p>
                  <Copy text="llmos device token" />
                  {join}
                </Empty>
              }
            />
          ) : (
            <Skeleton lines={6} />
          )}
        </Card>
      )}
      {more > 0 && <Notice>{withCode(t("fleet.hidden", { n: f.number(more) }))}</Notice>}
      {token && (
        <Dialog title={t("fleet.token.title")} onClose={() => setToken(null)}>
          <p>{t("fleet.token.about")}</p>
          <Copy text={`llmos edge join ${window.location.origin} --token ${token.token}`} />
          <p className="soft small">{t("fleet.token.holder")}</p>
          <p className="soft small">{t("fleet.token.ends", { at: f.exact(token.expires_at) })}</p>
          <div className="dialog-actions">
            <Button kind="primary" onClick={() => setToken(null)}>
              {t("fleet.token.done")}
            </Button>
          </div>
        </Dialog>
      )}
    </div>
  );
}
