/** One device: who it is, how it took part, and what can be done about it. */

import { useState } from "react";
import { api, part } from "../api/api";
import { useLive } from "../api/live";
import type { DeviceView, FleetNow, Participation } from "../api/types";
import { useAction, useResource } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Facts,
  PageHead,
  ProblemNotice,
  Skeleton,
  Time,
} from "../components/basic";
import { Button } from "../components/button";
import { ConfirmDialog } from "../components/dialog";
import { TextField } from "../components/field";
import { type Column, Table } from "../components/table";
import { toast } from "../components/toast";
import { STANDINGS, STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address } from "../lib/router";
import { useMay } from "../lib/session";
import { Condition } from "./fleet";

type Deed = "quarantine" | "release" | "revoke";
const DONE = {
  quarantine: "device.quarantined",
  release: "device.released",
  revoke: "device.revoked",
} as const;

export function Device({ name }: { name: string }) {
  const t = useText();
  const code = useCode();
  const path = `/api/v1/devices/${part(name)}`;
  const { data: device, problem, reload } = useResource<DeviceView>(path);
  const fleet = useLive<FleetNow>("fleet");
  const [deed, setDeed] = useState<Deed | null>(null);
  const mayKeepOut = useMay("operator", "admin");
  const mayRevoke = useMay("admin");
  const state = fleet.data?.devices[name]?.state ?? device?.state ?? "";
  const standing = device?.standing;
  return (
    <div className="page">
      <PageHead
        title={name}
        up={{ href: address("fleet"), text: t("fleet.title") }}
        badge={
          device && (
            <>
              <Badge tone={STATES[state]}>{code("state", state)}</Badge>
              {standing && <Badge tone={STANDINGS[standing]}>{code("standing", standing)}</Badge>}
            </>
          )
        }
        actions={
          // A coordinator that cannot keep devices out says nothing of their standing.
          standing &&
          standing !== "revoked" && (
            <>
              {mayKeepOut &&
                (standing === "quarantined" ? (
                  <Button onClick={() => setDeed("release")}>{t("device.release")}</Button>
                ) : (
                  <Button onClick={() => setDeed("quarantine")}>{t("device.quarantine")}</Button>
                ))}
              {mayRevoke && (
                <Button kind="danger" onClick={() => setDeed("revoke")}>
                  {t("device.revoke")}
                </Button>
              )}
            </>
          )
        }
      />
      <ProblemNotice problem={problem} retry={reload} />
      {device ? <Shown device={device} /> : !problem && <Skeleton lines={8} />}
      {deed && (
        <Confirm
          name={name}
          path={path}
          deed={deed}
          onClose={() => setDeed(null)}
          onDone={() => {
            setDeed(null);
            toast(t(DONE[deed], { name }));
            reload();
          }}
        />
      )}
    </div>
  );
}

function Confirm(props: {
  name: string;
  path: string;
  deed: Deed;
  onClose: () => void;
  onDone: () => void;
}) {
  const t = useText();
  const { name, path, deed } = props;
  const [reason, setReason] = useState("");
  const doing = useAction(async () => {
    if (deed === "quarantine") await api.post(`${path}/quarantine`, { reason });
    else if (deed === "release") await api.delete(`${path}/quarantine`);
    else await api.delete(path);
    props.onDone();
  });
  return (
    <ConfirmDialog
      title={t(`device.${deed}.title`, { name })}
      confirm={t(`device.${deed}`)}
      danger={deed !== "release"}
      busy={doing.busy}
      problem={doing.problem}
      onConfirm={doing.run}
      onClose={props.onClose}
    >
      <p>{t(`device.${deed}.about`)}</p>
      {deed === "quarantine" && (
        <TextField
          label={t("device.quarantine.reason")}
          hint={t("device.quarantine.reason.hint")}
          value={reason}
          onChange={setReason}
        />
      )}
    </ConfirmDialog>
  );
}

function Shown({ device }: { device: DeviceView }) {
  const t = useText();
  const f = useFormat();
  const columns: Column<Participation>[] = [
    {
      id: "run",
      head: t("device.run"),
      cell: (row) => <a href={address("runs", row.run)}>{row.run}</a>,
    },
    {
      id: "invited",
      head: t("device.invited"),
      cell: (row) => f.number(row.invited),
      align: "right",
    },
    {
      id: "took-part",
      head: t("device.took-part"),
      cell: (row) => f.number(row.took_part),
      align: "right",
    },
    {
      id: "declined",
      head: t("device.declined"),
      cell: (row) => (
        <ul>
          {row.declined.map(([round, code, reason]) => (
            <li key={round} title={String(code)}>
              {t("device.declined.round", { round: String(round), reason: String(reason) })}
            </li>
          ))}
        </ul>
      ),
    },
  ];
  return (
    <>
      <div className="columns">
        <Card title={t("device.identity")} about={t("device.identity.about")}>
          <Facts
            of={[
              [t("fleet.fingerprint"), <code key="fingerprint">{device.fingerprint}</code>],
              [t("device.public-key"), <code key="key">{device.public_key}</code>],
              [t("fleet.joined"), <Time key="joined" at={device.joined_at} />],
              [t("fleet.condition"), <Condition key="condition" of={device} />],
              [t("fleet.version"), device.version ?? t("fleet.untold")],
              [
                t("fleet.budget"),
                device.budget_left == null ? t("fleet.untold") : f.number(device.budget_left, 2),
              ],
              [
                t("device.heard"),
                device.heard_at === null ? (
                  t("device.unheard")
                ) : (
                  <Time key="heard" at={device.heard_at} />
                ),
              ],
            ]}
          />
        </Card>
        <Card title={t("device.answers")}>
          {device.answers_with ? (
            <Facts
              of={[
                [
                  t("device.answers.adapter"),
                  <code key="adapter">{device.answers_with.adapter}</code>,
                ],
                [
                  t("device.answers.manifest"),
                  <code key="manifest">{device.answers_with.manifest}</code>,
                ],
              ]}
            />
          ) : (
            <p className="soft">{t("device.answers.nothing")}</p>
          )}
        </Card>
      </div>
      <Card title={t("device.runs")} about={t("device.runs.about")} flush>
        <Table
          label={t("device.runs")}
          columns={columns}
          rows={device.runs}
          rowId={(row) => row.run}
          empty={
            <Empty icon="runs" title={t("device.no-runs")}>
              <p>{t("device.no-runs.about")}</p>
            </Empty>
          }
        />
      </Card>
    </>
  );
}
