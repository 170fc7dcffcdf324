import { useState } from "react";
import { call, type Page, path } from "../api/client";
import type { Key, Role } from "../api/shapes";
import {
  Badge,
  Button,
  Confirm,
  Dialog,
  Empty,
  Field,
  Loading,
  PageHead,
  useAction,
  useNow,
  When,
  Wrong,
} from "../components/parts";
import { SecretOnce } from "../components/secret";
import { Table } from "../components/table";
import { number } from "../format";
import { useWords } from "../i18n";
import { useMay, useRead } from "../state";

const ROLES: Role[] = ["caller", "viewer", "auditor", "operator", "admin", "device"];

type Doing = { what: "revoke" | "rotate"; key: Key } | { what: "make" } | null;

/** Who may call the API: keys, what each opens, and until when. */
export function KeysPage() {
  const { t } = useWords();
  const isAdmin = useMay("admin");
  const { answer, error, again } = useRead(() => call<Page<Key>>("GET", "/api/v1/keys?limit=200"));
  const [doing, setDoing] = useState<Doing>(null);
  const [made, setMade] = useState<{ name: string; key: string } | null>(null);
  const [old, setOld] = useState(false);
  const now = useNow(60_000);
  const letIn = useAction(async (name: string) => {
    await call("DELETE", path`/api/v1/keys/${name}/quarantine`);
    await again();
  });
  const keys = (answer?.items ?? []).filter((key) => old || stateOf(key, now) !== "revoked");
  return (
    <>
      <PageHead title={t("keys.title")} about={t("keys.about")}>
        {isAdmin && (
          <Button tone="main" onClick={() => setDoing({ what: "make" })}>
            {t("keys.new")}
          </Button>
        )}
      </PageHead>
      <div className="stack">
        <Wrong error={error ?? letIn.error} />
        {!answer && !error && <Loading />}
        {answer && (
          <>
            <label className="row">
              <input type="checkbox" checked={old} onChange={() => setOld(!old)} />
              {t("keys.show-revoked")}
            </label>
            <Table<Key>
              caption={t("keys.title")}
              rows={keys}
              keyOf={(key) => key.name}
              empty={<Empty title={t("keys.none")}>{t("keys.none-about")}</Empty>}
              columns={[
                {
                  name: t("keys.name"),
                  show: (key) => (
                    <>
                      {key.name}
                      <div className="quiet mono">{key.prefix}…</div>
                    </>
                  ),
                },
                { name: t("keys.state"), show: (key) => <StateOf state={stateOf(key, now)} /> },
                { name: t("keys.role"), show: (key) => <Scopes keyShown={key} /> },
                { name: t("keys.limits"), show: (key) => <Limits keyShown={key} /> },
                { name: t("keys.made"), show: (key) => <When at={key.created_at} /> },
                {
                  name: t("keys.ends"),
                  show: (key) =>
                    key.expires_at === null ? t("keys.never") : <When at={key.expires_at} />,
                },
                {
                  name: t("common.actions"),
                  show: (key) => {
                    const state = stateOf(key, now);
                    if (!isAdmin || state === "revoked" || state === "expired") return null;
                    return (
                      <span className="row">
                        {state === "quarantined" && (
                          <Button small onClick={() => void letIn.run(key.name)}>
                            {t("fleet.let-in")}
                          </Button>
                        )}
                        <Button small onClick={() => setDoing({ what: "rotate", key })}>
                          {t("keys.rotate")}
                        </Button>
                        <Button
                          small
                          tone="danger"
                          onClick={() => setDoing({ what: "revoke", key })}
                        >
                          {t("keys.revoke")}
                        </Button>
                      </span>
                    );
                  },
                },
              ]}
            />
          </>
        )}
      </div>
      {doing?.what === "make" && (
        <NewKey
          onClose={() => setDoing(null)}
          onMade={(key) => {
            setDoing(null);
            setMade(key);
            void again();
          }}
        />
      )}
      {doing?.what === "rotate" && (
        <Rotate
          name={doing.key.name}
          onClose={() => setDoing(null)}
          onMade={(key) => {
            setDoing(null);
            setMade(key);
            void again();
          }}
        />
      )}
      {doing?.what === "revoke" && (
        <Confirm
          title={t("keys.revoke-title", { key: doing.key.name })}
          action={t("keys.revoke")}
          onClose={() => setDoing(null)}
          onDo={async () => {
            await call("DELETE", path`/api/v1/keys/${doing.key.name}`);
            await again();
          }}
        >
          {t("keys.revoke-about")}
        </Confirm>
      )}
      {made && (
        <SecretOnce
          title={t("keys.made-title", { key: made.name })}
          secret={made.key}
          onClose={() => setMade(null)}
        />
      )}
    </>
  );
}

type State = "active" | "expired" | "revoked" | "quarantined";

export function stateOf(key: Key, now: number): State {
  if (key.revoked_at !== null) return "revoked";
  if (key.expires_at !== null && key.expires_at <= now) return "expired";
  return key.quarantined_at ? "quarantined" : "active";
}

function StateOf({ state }: { state: State }) {
  const { code } = useWords();
  const tones = { active: "good", expired: "", revoked: "bad", quarantined: "warn" } as const;
  return <Badge tone={tones[state]}>{code("key", state)}</Badge>;
}

function Scopes({ keyShown: key }: { keyShown: Key }) {
  const { code } = useWords();
  const named = [...key.models, ...key.tasks, ...key.collections];
  return (
    <>
      {code("role", key.role)}
      {named.length > 0 && <div className="quiet">{named.join(", ")}</div>}
    </>
  );
}

function Limits({ keyShown: key }: { keyShown: Key }) {
  const { t, language } = useWords();
  const limits = [
    key.tokens_per_minute
      ? t("keys.per-minute", { n: number(key.tokens_per_minute, language) })
      : t("keys.no-limit"),
    key.priority ? t("keys.priority-is", { n: key.priority }) : "",
  ];
  return <span className="quiet">{limits.filter(Boolean).join(", ")}</span>;
}

function NewKey({
  onClose,
  onMade,
}: {
  onClose: () => void;
  onMade: (made: { name: string; key: string }) => void;
}) {
  const { t, code } = useWords();
  const [name, setName] = useState("");
  const [role, setRole] = useState<Role>("caller");
  const [days, setDays] = useState("90");
  const [models, setModels] = useState("");
  const [collections, setCollections] = useState("");
  const [tokens, setTokens] = useState("0");
  const [priority, setPriority] = useState("0");
  const make = useAction(async () => {
    onMade(
      await call("POST", "/api/v1/keys", {
        name,
        role,
        days: days.trim() === "" ? null : Number(days),
        models: listOf(models),
        collections: listOf(collections),
        tokens_per_minute: Number(tokens),
        priority: Number(priority),
      }),
    );
  });
  return (
    <Dialog title={t("keys.new")} onClose={onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void make.run();
        }}
      >
        <Field label={t("keys.name")} hint={t("keys.name-about")}>
          {(ids) => (
            <input
              {...ids}
              required
              value={name}
              onChange={(event) => setName(event.target.value)}
            />
          )}
        </Field>
        <Field label={t("keys.role")} hint={code("role-about", role)}>
          {(ids) => (
            <select {...ids} value={role} onChange={(event) => setRole(event.target.value as Role)}>
              {ROLES.map((each) => (
                <option key={each} value={each}>
                  {code("role", each)}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Field label={t("keys.days")} hint={t("keys.days-about")}>
          {(ids) => (
            <input
              {...ids}
              inputMode="decimal"
              value={days}
              onChange={(event) => setDays(event.target.value)}
            />
          )}
        </Field>
        <details>
          <summary>{t("keys.narrow")}</summary>
          <div className="stack">
            <Field label={t("keys.models")} hint={t("keys.models-about")}>
              {(ids) => (
                <input
                  {...ids}
                  value={models}
                  onChange={(event) => setModels(event.target.value)}
                />
              )}
            </Field>
            <Field label={t("keys.collections")} hint={t("keys.models-about")}>
              {(ids) => (
                <input
                  {...ids}
                  value={collections}
                  onChange={(event) => setCollections(event.target.value)}
                />
              )}
            </Field>
            <Field label={t("keys.tokens")} hint={t("keys.tokens-about")}>
              {(ids) => (
                <input
                  {...ids}
                  inputMode="numeric"
                  value={tokens}
                  onChange={(event) => setTokens(event.target.value)}
                />
              )}
            </Field>
            <Field label={t("keys.priority")} hint={t("keys.priority-about")}>
              {(ids) => (
                <input
                  {...ids}
                  inputMode="numeric"
                  value={priority}
                  onChange={(event) => setPriority(event.target.value)}
                />
              )}
            </Field>
          </div>
        </details>
        <Wrong error={make.error} />
        <div className="actions">
          <Button onClick={onClose}>{t("common.cancel")}</Button>
          <Button tone="main" type="submit" busy={make.busy}>
            {t("keys.make")}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function listOf(text: string): string[] {
  return text
    .split(",")
    .map((each) => each.trim())
    .filter(Boolean);
}

function Rotate({
  name,
  onClose,
  onMade,
}: {
  name: string;
  onClose: () => void;
  onMade: (made: { name: string; key: string }) => void;
}) {
  const { t } = useWords();
  const [hours, setHours] = useState("24");
  const rotate = useAction(async () => {
    onMade(await call("POST", path`/api/v1/keys/${name}/rotate`, { overlap_hours: Number(hours) }));
  });
  return (
    <Dialog title={t("keys.rotate-title", { key: name })} onClose={onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void rotate.run();
        }}
      >
        <Field label={t("keys.overlap")} hint={t("keys.overlap-about")}>
          {(ids) => (
            <input
              {...ids}
              inputMode="decimal"
              value={hours}
              onChange={(event) => setHours(event.target.value)}
            />
          )}
        </Field>
        <Wrong error={rotate.error} />
        <div className="actions">
          <Button onClick={onClose}>{t("common.cancel")}</Button>
          <Button tone="main" type="submit" busy={rotate.busy}>
            {t("keys.rotate")}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
