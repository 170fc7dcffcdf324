import { useState } from "react";
import { call, path } from "../api/client";
import type { Device, DeviceDetails, FleetState } from "../api/shapes";
import {
  Badge,
  Button,
  Confirm,
  Copyable,
  Dialog,
  Empty,
  Figure,
  Loading,
  Notice,
  PageHead,
  type Tone,
  useAction,
  useToast,
  When,
  Wrong,
} from "../components/parts";
import { Table } from "../components/table";
import { number, short } from "../format";
import { useWords } from "../i18n";
import { linkTo } from "../router";
import { useMay, useRead, useTopic } from "../state";

const TONES: Record<string, Tone> = {
  idle: "good",
  training: "busy",
  away: "",
  quarantined: "warn",
  revoked: "bad",
};

/** Which devices there are, what they do now, and who may take part. */
export function FleetPage() {
  const { t, code, language } = useWords();
  const { state, problem } = useTopic<FleetState>("fleet");
  const [shown, setShown] = useState<string | null>(null);
  const [wanted, setWanted] = useState("");
  const [inviting, setInviting] = useState(false);
  const mayWork = useMay("operator", "admin");
  const devices = Object.values(state?.devices ?? {})
    .filter((device) => device.name.includes(wanted.trim().toLowerCase()))
    .sort((one, other) => (one.name < other.name ? -1 : 1));
  return (
    <>
      <PageHead title={t("fleet.title")} about={t("fleet.about")}>
        {mayWork && (
          <Button tone="main" onClick={() => setInviting(true)}>
            {t("fleet.add")}
          </Button>
        )}
      </PageHead>
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!state && !problem && <Loading />}
      {state && (
        <div className="stack">
          <div className="figures">
            {Object.entries(state.counts).map(([what, count]) => (
              <Figure key={what} label={code("device", what)} value={number(count, language)} />
            ))}
          </div>
          {Object.keys(state.devices).length > 8 && (
            <input
              className="input"
              type="search"
              aria-label={t("fleet.search")}
              placeholder={t("fleet.search")}
              value={wanted}
              onChange={(event) => setWanted(event.target.value)}
            />
          )}
          <Table
            caption={t("fleet.title")}
            rows={devices}
            keyOf={(device) => device.name}
            empty={
              wanted ? (
                <Empty title={t("fleet.none-found")} />
              ) : (
                <Empty title={t("fleet.none")} command="llmos device token">
                  {t("fleet.none-about")}
                </Empty>
              )
            }
            columns={[
              {
                name: t("fleet.name"),
                show: (device) => (
                  <Button tone="plain" small onClick={() => setShown(device.name)}>
                    {device.name}
                  </Button>
                ),
              },
              { name: t("fleet.state"), show: (device) => <StateOf device={device} /> },
              {
                name: t("fleet.fingerprint"),
                show: (device) => <span className="mono">{device.fingerprint}</span>,
              },
              { name: t("fleet.joined"), show: (device) => <When at={device.joined_at} /> },
            ]}
          />
          {state.more ? (
            <p className="quiet">{t("fleet.more", { n: number(state.more, language) })}</p>
          ) : null}
        </div>
      )}
      {shown && <DeviceWindow name={shown} onClose={() => setShown(null)} />}
      {inviting && <Invite onClose={() => setInviting(false)} />}
    </>
  );
}

function StateOf({ device }: { device: Device }) {
  const { code } = useWords();
  const standing = device.standing ?? "trusted";
  const what = standing === "trusted" ? device.state : standing;
  return <Badge tone={TONES[what] ?? ""}>{code("device", what)}</Badge>;
}

function DeviceWindow({ name, onClose }: { name: string; onClose: () => void }) {
  const { t, language } = useWords();
  const {
    answer: device,
    error,
    again,
  } = useRead(() => call<DeviceDetails>("GET", path`/api/v1/devices/${name}`), name);
  return (
    <Dialog title={name} onClose={onClose}>
      <Wrong error={error} />
      {!device && !error && <Loading />}
      {device && (
        <>
          <dl className="facts">
            <dt>{t("fleet.state")}</dt>
            <dd>
              <StateOf device={device} />
            </dd>
            <dt>{t("fleet.heard")}</dt>
            <dd>
              <When at={device.heard_at} />
            </dd>
            <dt>{t("fleet.joined")}</dt>
            <dd>
              <When at={device.joined_at} />
            </dd>
            <dt>{t("fleet.fingerprint")}</dt>
            <dd className="mono">{device.fingerprint}</dd>
            <dt>{t("fleet.answers-with")}</dt>
            <dd className="mono">
              {device.answers_with?.adapter ? short(device.answers_with.adapter) : "–"}
            </dd>
          </dl>
          <p className="quiet">{t("fleet.budget-about")}</p>
          <Table
            caption={t("fleet.runs")}
            rows={device.runs}
            keyOf={(run) => run.run}
            empty={<Empty title={t("fleet.no-runs")} />}
            columns={[
              {
                name: t("runs.run"),
                show: (run) => <a href={linkTo("runs", run.run)}>{run.run}</a>,
              },
              { name: t("fleet.invited"), end: true, show: (run) => number(run.invited, language) },
              {
                name: t("fleet.took-part"),
                end: true,
                show: (run) => number(run.took_part, language),
              },
              {
                name: t("fleet.declined"),
                end: true,
                show: (run) => (
                  <span title={run.declined.map((each) => JSON.stringify(each)).join("\n")}>
                    {number(run.declined.length, language)}
                  </span>
                ),
              },
            ]}
          />
          <Standing device={device} changed={again} />
        </>
      )}
      <div className="actions">
        <Button onClick={onClose}>{t("common.close")}</Button>
      </div>
    </Dialog>
  );
}

/** Keeps a device out for a while or for good. */
function Standing({ device, changed }: { device: DeviceDetails; changed: () => Promise<void> }) {
  const { t } = useWords();
  const say = useToast();
  const mayWork = useMay("operator", "admin");
  const isAdmin = useMay("admin");
  const [asking, setAsking] = useState<"quarantine" | "revoke" | null>(null);
  const letIn = useAction(async () => {
    await call("DELETE", path`/api/v1/devices/${device.name}/quarantine`);
    await changed();
  });
  const standing = device.standing;
  if (!mayWork || standing === undefined || standing === "revoked") return null;
  return (
    <>
      <Wrong error={letIn.error} />
      <div className="actions">
        {standing === "quarantined" ? (
          <Button busy={letIn.busy} onClick={() => void letIn.run()}>
            {t("fleet.let-in")}
          </Button>
        ) : (
          <Button onClick={() => setAsking("quarantine")}>{t("fleet.quarantine")}</Button>
        )}
        {isAdmin && (
          <Button tone="danger" onClick={() => setAsking("revoke")}>
            {t("fleet.revoke")}
          </Button>
        )}
      </div>
      {asking === "quarantine" && (
        <Confirm
          title={t("fleet.quarantine-title", { device: device.name })}
          action={t("fleet.quarantine")}
          danger={false}
          onClose={() => setAsking(null)}
          onDo={async () => {
            await call("POST", path`/api/v1/devices/${device.name}/quarantine`, {
              reason: t("fleet.by-hand"),
            });
            await changed();
          }}
        >
          {t("fleet.quarantine-about")}
        </Confirm>
      )}
      {asking === "revoke" && (
        <Confirm
          title={t("fleet.revoke-title", { device: device.name })}
          action={t("fleet.revoke")}
          onClose={() => setAsking(null)}
          onDo={async () => {
            await call("DELETE", path`/api/v1/devices/${device.name}`);
            say(t("fleet.revoked", { device: device.name }));
            await changed();
          }}
        >
          {t("fleet.revoke-about")}
        </Confirm>
      )}
    </>
  );
}

function Invite({ onClose }: { onClose: () => void }) {
  const { t } = useWords();
  const [token, setToken] = useState<{ token: string; expires_at: number } | null>(null);
  const make = useAction(async () => {
    setToken(await call("POST", "/api/v1/devices/tokens", { valid_s: 3600 }));
  });
  return (
    <Dialog title={t("fleet.add")} onClose={onClose}>
      <p>{t("fleet.add-about")}</p>
      {token ? (
        <>
          <Copyable text={`llmos edge join ${location.origin} --token ${token.token}`} />
          <p className="quiet">
            {t("fleet.token-ends")} <When at={token.expires_at} />
          </p>
          <p className="quiet">{t("fleet.key-holder")}</p>
        </>
      ) : null}
      <Wrong error={make.error} />
      <div className="actions">
        <Button onClick={onClose}>{t("common.close")}</Button>
        {!token && (
          <Button tone="main" busy={make.busy} onClick={() => void make.run()}>
            {t("fleet.make-token")}
          </Button>
        )}
      </div>
    </Dialog>
  );
}
