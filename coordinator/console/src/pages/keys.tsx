/** Keys of the API: who may call it, with what, and until when. */

import { useState } from "react";
import { api, part } from "../api/api";
import type { ApiKey } from "../api/types";
import { useAction, useListing } from "../api/use_resource";
import { Badge, Card, Empty, PageHead, ProblemNotice, Time, withCode } from "../components/basic";
import { Button } from "../components/button";
import { ConfirmDialog, Dialog } from "../components/dialog";
import { CheckField, SelectField, TextField } from "../components/field";
import { SecretOnce } from "../components/secret";
import { type Column, Table } from "../components/table";
import { toast } from "../components/toast";
import { KEY_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { useNow } from "../lib/now";
import { type Role, useMay } from "../lib/session";

const ROLES: readonly Role[] = ["caller", "viewer", "auditor", "operator", "admin"];

interface Made {
  name: string;
  key: string;
}

type Deed = "rotate" | "revoke" | "quarantine" | "release";
type Doing = { what: "make" } | { what: Deed; name: string };
type State = "active" | "expired" | "quarantined" | "revoked";

export function stateOf(key: ApiKey, now: number): State {
  if (key.revoked_at !== null) return "revoked";
  if (key.expires_at !== null && key.expires_at <= now) return "expired";
  return key.quarantined_at === null ? "active" : "quarantined";
}

/** Whether it opens something, or will when it is let out. */
function isAlive(key: ApiKey, now: number): boolean {
  const state = stateOf(key, now);
  return state === "active" || state === "quarantined";
}

export function Keys() {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const now = useNow();
  const isAdmin = useMay("admin");
  const keys = useListing<ApiKey>("/api/v1/keys", { limit: 200 });
  const [old, setOld] = useState(false);
  const [doing, setDoing] = useState<Doing | null>(null);
  const [made, setMade] = useState<Made | null>(null);
  const done = (secret: Made | null) => {
    setDoing(null);
    setMade(secret);
    keys.reload();
  };
  const columns: Column<ApiKey>[] = [
    {
      id: "name",
      head: t("keys.name"),
      cell: (row) => (
        <>
          <b>{row.name}</b> <code className="soft">{row.prefix}…</code>
        </>
      ),
      sort: (row) => row.name,
    },
    {
      id: "state",
      head: t("keys.state"),
      cell: (row) => {
        const state = stateOf(row, now);
        return <Badge tone={KEY_STATES[state]}>{code("key", state)}</Badge>;
      },
      sort: (row) => stateOf(row, now),
    },
    {
      id: "role",
      head: t("keys.role"),
      cell: (row) => (
        <>
          {code("role", row.role)}
          <div className="soft small break">
            {[...row.models, ...row.tasks, ...row.collections].join(", ")}
          </div>
        </>
      ),
      sort: (row) => row.role,
    },
    {
      id: "limits",
      head: t("keys.limits"),
      cell: (row) =>
        [
          row.tokens_per_minute > 0 &&
            t("keys.limit.tokens", { n: f.number(row.tokens_per_minute) }),
          row.priority !== 0 && t("keys.limit.priority", { n: row.priority }),
        ]
          .filter(Boolean)
          .join(", ") || t("keys.limit.none"),
    },
    {
      id: "made",
      head: t("keys.made"),
      cell: (row) => <Time at={row.created_at} />,
      sort: (row) => row.created_at,
    },
    {
      id: "ends",
      head: t("keys.ends"),
      cell: (row) => (
        <>
          <Time at={row.expires_at} />
          {row.former_ends_at !== null && row.former_ends_at > now && (
            <div className="soft small">
              {t("keys.overlap.until", { at: f.exact(row.former_ends_at) })}
            </div>
          )}
        </>
      ),
      sort: (row) => row.expires_at ?? Number.POSITIVE_INFINITY,
    },
  ];
  if (isAdmin) {
    columns.push({
      id: "actions",
      head: t("keys.actions"),
      cell: (row) =>
        isAlive(row, now) && (
          <span className="row">
            <Button
              label={t("keys.rotate.title", { name: row.name })}
              onClick={() => setDoing({ what: "rotate", name: row.name })}
            >
              {t("keys.rotate")}
            </Button>
            {row.quarantined_at === null ? (
              <Button
                label={t("keys.quarantine.title", { name: row.name })}
                onClick={() => setDoing({ what: "quarantine", name: row.name })}
              >
                {t("keys.quarantine")}
              </Button>
            ) : (
              <Button
                label={t("keys.release.title", { name: row.name })}
                onClick={() => setDoing({ what: "release", name: row.name })}
              >
                {t("keys.release")}
              </Button>
            )}
            <Button
              kind="danger"
              label={t("keys.revoke.title", { name: row.name })}
              onClick={() => setDoing({ what: "revoke", name: row.name })}
            >
              {t("keys.revoke")}
            </Button>
          </span>
        ),
    });
  }
  return (
    <div className="page">
      <PageHead
        title={t("keys.title")}
        about={t("keys.about")}
        actions={
          isAdmin && (
            <Button kind="primary" onClick={() => setDoing({ what: "make" })}>
              {t("keys.new")}
            </Button>
          )
        }
      />
      <ProblemNotice problem={keys.problem} retry={keys.reload} />
      <CheckField label={t("keys.old")} checked={old} onChange={setOld} />
      <Card flush>
        <Table
          label={t("keys.title")}
          columns={columns}
          rows={keys.items.filter((key) => old || isAlive(key, now))}
          rowId={(row) => row.name}
          loading={keys.loading}
          onMore={keys.more ? keys.next : undefined}
          empty={
            <Empty icon="keys" title={t("keys.empty")}>
              <p>{t("keys.empty.about")}</p>
            </Empty>
          }
        />
      </Card>
      {doing?.what === "make" && <MakeKey onMade={done} onClose={() => setDoing(null)} />}
      {doing?.what === "rotate" && (
        <RotateKey name={doing.name} onMade={done} onClose={() => setDoing(null)} />
      )}
      {doing && doing.what !== "make" && doing.what !== "rotate" && (
        <KeepOut
          deed={doing.what}
          name={doing.name}
          onDone={() => done(null)}
          onClose={() => setDoing(null)}
        />
      )}
      {made && (
        <SecretOnce
          title={t("keys.secret", { name: made.name })}
          about={t("keys.secret.about")}
          secret={made.key}
          onClose={() => setMade(null)}
        />
      )}
    </div>
  );
}

function listOf(text: string): string[] {
  return text
    .split(",")
    .map((each) => each.trim())
    .filter((each) => each !== "");
}

function isWhole(text: string, least: number, most: number): boolean {
  return /^-?\d+$/.test(text.trim()) && Number(text) >= least && Number(text) <= most;
}

const MOST_TOKENS = 1_000_000_000;
const MOST_OVERLAP_HOURS = 720;

function MakeKey(props: { onMade: (made: Made) => void; onClose: () => void }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const [name, setName] = useState("");
  const [role, setRole] = useState<string>("caller");
  const [days, setDays] = useState("90");
  const [models, setModels] = useState("");
  const [tasks, setTasks] = useState("");
  const [collections, setCollections] = useState("");
  const [tokens, setTokens] = useState("0");
  const [priority, setPriority] = useState("0");
  const badDays = days.trim() !== "" && !(Number(days) > 0);
  const badTokens = !isWhole(tokens, 0, MOST_TOKENS);
  const badPriority = !isWhole(priority, -10, 10);
  const making = useAction(async () => {
    const made = await api.post<Made>("/api/v1/keys", {
      name,
      role,
      days: days.trim() === "" ? null : Number(days),
      models: listOf(models),
      tasks: listOf(tasks),
      collections: listOf(collections),
      tokens_per_minute: Number(tokens),
      priority: Number(priority),
    });
    props.onMade(made);
  });
  return (
    <Dialog title={t("keys.new")} onClose={props.onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          if (!badDays && !badTokens && !badPriority) void making.run();
        }}
      >
        <TextField
          label={t("keys.name")}
          hint={t("keys.name.hint")}
          required
          value={name}
          onChange={setName}
        />
        <SelectField
          label={t("keys.role")}
          hint={code("may", role)}
          value={role}
          options={ROLES.map((each) => ({ value: each, text: code("role", each) }))}
          onChange={setRole}
        />
        <TextField
          label={t("keys.days")}
          hint={t("keys.days.hint")}
          error={badDays ? t("keys.days.wrong") : undefined}
          inputMode="decimal"
          value={days}
          onChange={setDays}
        />
        <details>
          <summary>{t("keys.narrow")}</summary>
          <div className="stack">
            <TextField
              label={t("keys.models")}
              hint={withCode(t("keys.scope.hint"))}
              value={models}
              onChange={setModels}
            />
            <TextField
              label={t("keys.tasks")}
              hint={withCode(t("keys.tasks.hint"))}
              value={tasks}
              onChange={setTasks}
            />
            <TextField
              label={t("keys.collections")}
              hint={withCode(t("keys.scope.hint"))}
              value={collections}
              onChange={setCollections}
            />
            <TextField
              label={t("keys.tokens")}
              hint={t("keys.tokens.hint")}
              error={
                badTokens ? t("keys.whole", { least: 0, most: f.number(MOST_TOKENS) }) : undefined
              }
              inputMode="numeric"
              value={tokens}
              onChange={setTokens}
            />
            <TextField
              label={t("keys.priority")}
              hint={t("keys.priority.hint")}
              error={badPriority ? t("keys.whole", { least: -10, most: 10 }) : undefined}
              value={priority}
              onChange={setPriority}
            />
          </div>
        </details>
        <ProblemNotice problem={making.problem} />
        <div className="dialog-actions">
          <Button onClick={props.onClose}>{t("common.cancel")}</Button>
          <Button type="submit" kind="primary" busy={making.busy}>
            {t("keys.make")}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function RotateKey(props: { name: string; onMade: (made: Made) => void; onClose: () => void }) {
  const t = useText();
  const f = useFormat();
  const [hours, setHours] = useState("24");
  const wrong = hours.trim() === "" || !(Number(hours) >= 0 && Number(hours) <= MOST_OVERLAP_HOURS);
  const rotating = useAction(async () => {
    const path = `/api/v1/keys/${part(props.name)}/rotate`;
    props.onMade(await api.post<Made>(path, { overlap_hours: Number(hours) }));
  });
  return (
    <ConfirmDialog
      title={t("keys.rotate.title", { name: props.name })}
      confirm={t("keys.rotate")}
      busy={rotating.busy}
      problem={rotating.problem}
      onConfirm={() => !wrong && void rotating.run()}
      onClose={props.onClose}
    >
      <TextField
        label={t("keys.overlap")}
        hint={t("keys.overlap.hint")}
        error={
          wrong
            ? t("playground.number", { least: 0, most: f.number(MOST_OVERLAP_HOURS) })
            : undefined
        }
        inputMode="decimal"
        value={hours}
        onChange={setHours}
      />
    </ConfirmDialog>
  );
}

const DONE = {
  revoke: "keys.revoked",
  quarantine: "keys.quarantined",
  release: "keys.released",
} as const;

/** Ask once more, then shut a key out for good or for now, or let it in again. */
function KeepOut(props: {
  deed: keyof typeof DONE;
  name: string;
  onDone: () => void;
  onClose: () => void;
}) {
  const t = useText();
  const [reason, setReason] = useState("");
  const { deed, name } = props;
  const doing = useAction(async () => {
    const path = `/api/v1/keys/${part(name)}`;
    if (deed === "revoke") await api.delete(path);
    else if (deed === "release") await api.delete(`${path}/quarantine`);
    else await api.post(`${path}/quarantine`, reason.trim() ? { reason: reason.trim() } : {});
    toast(t(DONE[deed], { name }));
    props.onDone();
  });
  return (
    <ConfirmDialog
      title={t(`keys.${deed}.title`, { name })}
      confirm={t(`keys.${deed}`)}
      danger={deed === "revoke"}
      busy={doing.busy}
      problem={doing.problem}
      onConfirm={doing.run}
      onClose={props.onClose}
    >
      <p>{t(`keys.${deed}.about`)}</p>
      {deed === "quarantine" && (
        <TextField label={t("keys.reason")} value={reason} onChange={setReason} />
      )}
    </ConfirmDialog>
  );
}
