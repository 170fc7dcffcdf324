/** People: who may open this console, and as what. */

import { useState } from "react";
import { api, part } from "../api/api";
import type { Invitation, Person } from "../api/types";
import { useAction, useListing } from "../api/use_resource";
import { Badge, Card, Empty, PageHead, ProblemNotice, Time } from "../components/basic";
import { Button } from "../components/button";
import { Copy } from "../components/copy";
import { ConfirmDialog } from "../components/dialog";
import { SelectField, TextField } from "../components/field";
import { SecretOnce } from "../components/secret";
import { type Column, Table } from "../components/table";
import { toast } from "../components/toast";
import { PERSON_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address } from "../lib/router";
import { type Role, useMay, useSession } from "../lib/session";

const ROLES: readonly Role[] = ["viewer", "auditor", "operator", "admin", "caller"];

/** Where a link is opened. It stands behind the `#`, which no browser sends to any server. */
export function invitationAddress(link: string): string {
  return `${window.location.origin}/console/${address("login", link)}`;
}

export function People() {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const isAdmin = useMay("admin");
  const me = useSession().data?.name;
  const people = useListing<Person>("/api/v1/people", { limit: 200 });
  const [inviting, setInviting] = useState(false);
  const [disabling, setDisabling] = useState<string | null>(null);
  const [invited, setInvited] = useState<Invitation | null>(null);
  const relinking = useAction(async (name: string) => {
    setInvited(await api.post<Invitation>(`/api/v1/people/${part(name)}/link`));
  });
  const promoting = useAction(async (name: string, role: string) => {
    await api.put(`/api/v1/people/${part(name)}/role`, { role });
    toast(t("people.role.changed", { name, role: code("role", role) }));
    people.reload();
  });
  const columns: Column<Person>[] = [
    { id: "name", head: t("people.name"), cell: (row) => row.name, sort: (row) => row.name },
    {
      id: "state",
      head: t("people.state"),
      cell: (row) => <Badge tone={PERSON_STATES[row.state]}>{code("person", row.state)}</Badge>,
      sort: (row) => row.state,
    },
    {
      id: "role",
      head: t("people.role"),
      cell: (row) =>
        isAdmin && row.state !== "disabled" && row.name !== me ? (
          <select
            aria-label={t("people.role-of", { name: row.name })}
            value={row.role}
            onChange={(event) => void promoting.run(row.name, event.target.value)}
          >
            {ROLES.map((role) => (
              <option key={role} value={role}>
                {code("role", role)}
              </option>
            ))}
          </select>
        ) : (
          code("role", row.role)
        ),
      sort: (row) => row.role,
    },
    {
      id: "invited",
      head: t("people.invited"),
      cell: (row) => <Time at={row.created_at} />,
      sort: (row) => row.created_at,
    },
    {
      id: "last",
      head: t("people.last"),
      cell: (row) => <Time at={row.last_login_at} />,
      sort: (row) => row.last_login_at ?? 0,
    },
  ];
  if (isAdmin) {
    columns.push({
      id: "actions",
      head: t("people.actions"),
      cell: (row) => (
        <span className="row">
          <Button
            label={`${t("people.link")}: ${row.name}`}
            busy={relinking.busy}
            onClick={() => void relinking.run(row.name)}
          >
            {t("people.link")}
          </Button>
          {row.state !== "disabled" && row.name !== me && (
            <Button
              kind="danger"
              label={t("people.disable.title", { name: row.name })}
              onClick={() => setDisabling(row.name)}
            >
              {t("people.disable")}
            </Button>
          )}
        </span>
      ),
    });
  }
  return (
    <div className="page">
      <PageHead
        title={t("people.title")}
        about={t("people.about")}
        actions={
          isAdmin && (
            <Button kind="primary" onClick={() => setInviting(true)}>
              {t("people.invite")}
            </Button>
          )
        }
      />
      <ProblemNotice problem={people.problem} retry={people.reload} />
      <ProblemNotice problem={relinking.problem ?? promoting.problem} />
      <Card flush>
        <Table
          label={t("people.title")}
          columns={columns}
          rows={people.items}
          rowId={(row) => row.name}
          loading={people.loading}
          onMore={people.more ? people.next : undefined}
          empty={
            <Empty icon="people" title={t("people.empty")}>
              <Copy text="llmos people link --first" />
            </Empty>
          }
        />
      </Card>
      {inviting && (
        <Invite
          onInvited={(made) => {
            setInviting(false);
            setInvited(made);
            people.reload();
          }}
          onClose={() => setInviting(false)}
        />
      )}
      {disabling && (
        <Disable
          name={disabling}
          onDone={() => {
            setDisabling(null);
            people.reload();
          }}
          onClose={() => setDisabling(null)}
        />
      )}
      {invited && (
        <SecretOnce
          title={t("people.link.title", { name: invited.name })}
          about={t("people.link.about")}
          secret={invitationAddress(invited.link)}
          onClose={() => setInvited(null)}
        >
          <p className="soft small">{t("people.link.ends", { at: f.exact(invited.expires_at) })}</p>
        </SecretOnce>
      )}
    </div>
  );
}

function Invite(props: { onInvited: (made: Invitation) => void; onClose: () => void }) {
  const t = useText();
  const code = useCode();
  const [name, setName] = useState("");
  const [role, setRole] = useState<string>("viewer");
  const inviting = useAction(async () => {
    props.onInvited(await api.post<Invitation>("/api/v1/people", { name, role }));
  });
  return (
    <ConfirmDialog
      title={t("people.invite")}
      confirm={t("people.invite")}
      busy={inviting.busy}
      problem={inviting.problem}
      onConfirm={inviting.run}
      onClose={props.onClose}
    >
      <TextField
        label={t("people.name")}
        hint={t("people.name.hint")}
        required
        value={name}
        onChange={setName}
      />
      <SelectField
        label={t("people.role")}
        hint={code("may", role)}
        value={role}
        options={ROLES.map((each) => ({ value: each, text: code("role", each) }))}
        onChange={setRole}
      />
    </ConfirmDialog>
  );
}

function Disable(props: { name: string; onDone: () => void; onClose: () => void }) {
  const t = useText();
  const disabling = useAction(async () => {
    await api.delete(`/api/v1/people/${part(props.name)}`);
    toast(t("people.disabled", { name: props.name }));
    props.onDone();
  });
  return (
    <ConfirmDialog
      title={t("people.disable.title", { name: props.name })}
      confirm={t("people.disable")}
      danger
      busy={disabling.busy}
      problem={disabling.problem}
      onConfirm={disabling.run}
      onClose={props.onClose}
    >
      <p>{t("people.disable.about")}</p>
    </ConfirmDialog>
  );
}
