import { useState } from "react";
import { call, type Page, path } from "../api/client";
import type { Invitation, Person, Role } from "../api/shapes";
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
  When,
  Wrong,
} from "../components/parts";
import { SecretOnce } from "../components/secret";
import { Table } from "../components/table";
import { useWords } from "../i18n";
import { linkTo } from "../router";
import { useMay, useRead, useSession } from "../state";

const ROLES: Role[] = ["viewer", "auditor", "operator", "admin"];
const TONES = { invited: "busy", active: "good", disabled: "" } as const;

/** Who may open this console, and as what. */
export function PeoplePage() {
  const { t, code } = useWords();
  const isAdmin = useMay("admin");
  const { session } = useSession();
  const { answer, error, again } = useRead(() =>
    call<Page<Person>>("GET", "/api/v1/people?limit=200"),
  );
  const [inviting, setInviting] = useState(false);
  const [disabling, setDisabling] = useState<string | null>(null);
  const [invited, setInvited] = useState<Invitation | null>(null);
  const relink = useAction(async (name: string) => {
    setInvited(await call("POST", path`/api/v1/people/${name}/link`));
  });
  const promote = useAction(async (name: string, role: Role) => {
    await call("PUT", path`/api/v1/people/${name}/role`, { role });
    await again();
  });
  return (
    <>
      <PageHead title={t("people.title")} about={t("people.about")}>
        {isAdmin && (
          <Button tone="main" onClick={() => setInviting(true)}>
            {t("people.invite")}
          </Button>
        )}
      </PageHead>
      <div className="stack">
        <Wrong error={error ?? relink.error ?? promote.error} />
        {!answer && !error && <Loading />}
        {answer && (
          <Table<Person>
            caption={t("people.title")}
            rows={answer.items}
            keyOf={(person) => person.name}
            empty={<Empty title={t("people.none")} command="llmos people link --first" />}
            columns={[
              { name: t("people.name"), show: (person) => person.name },
              {
                name: t("people.state"),
                show: (person) => (
                  <Badge tone={TONES[person.state]}>{code("person", person.state)}</Badge>
                ),
              },
              {
                name: t("keys.role"),
                show: (person) =>
                  isAdmin && person.state !== "disabled" && person.name !== session?.name ? (
                    <select
                      className="input"
                      aria-label={t("people.role-of", { name: person.name })}
                      value={person.role}
                      onChange={(event) =>
                        void promote.run(person.name, event.target.value as Role)
                      }
                    >
                      {ROLES.map((role) => (
                        <option key={role} value={role}>
                          {code("role", role)}
                        </option>
                      ))}
                    </select>
                  ) : (
                    code("role", person.role)
                  ),
              },
              { name: t("people.made"), show: (person) => <When at={person.created_at} /> },
              { name: t("people.last"), show: (person) => <When at={person.last_login_at} /> },
              {
                name: t("common.actions"),
                show: (person) =>
                  isAdmin &&
                  person.state !== "disabled" && (
                    <span className="row">
                      <Button small onClick={() => void relink.run(person.name)}>
                        {t("people.link")}
                      </Button>
                      {person.name !== session?.name && (
                        <Button small tone="danger" onClick={() => setDisabling(person.name)}>
                          {t("people.disable")}
                        </Button>
                      )}
                    </span>
                  ),
              },
            ]}
          />
        )}
      </div>
      {inviting && (
        <Invite
          onClose={() => setInviting(false)}
          onInvited={(made) => {
            setInviting(false);
            setInvited(made);
            void again();
          }}
        />
      )}
      {disabling && (
        <Confirm
          title={t("people.disable-title", { name: disabling })}
          action={t("people.disable")}
          onClose={() => setDisabling(null)}
          onDo={async () => {
            await call("DELETE", path`/api/v1/people/${disabling}`);
            await again();
          }}
        >
          {t("people.disable-about")}
        </Confirm>
      )}
      {invited && (
        <SecretOnce
          title={t("people.link-for", { name: invited.name })}
          secret={addressOf(invited.link)}
          onClose={() => setInvited(null)}
        >
          <p className="quiet">
            {t("people.link-about")} <When at={invited.expires_at} />
          </p>
        </SecretOnce>
      )}
    </>
  );
}

/** What is sent to somebody: the link is in the fragment, which no server and no log sees. */
export function addressOf(link: string): string {
  return link.includes("://") ? link : `${location.origin}/console/${linkTo("login", link)}`;
}

function Invite({
  onClose,
  onInvited,
}: {
  onClose: () => void;
  onInvited: (made: Invitation) => void;
}) {
  const { t, code } = useWords();
  const [name, setName] = useState("");
  const [role, setRole] = useState<Role>("viewer");
  const invite = useAction(async () => {
    onInvited(await call("POST", "/api/v1/people", { name, role }));
  });
  return (
    <Dialog title={t("people.invite")} onClose={onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void invite.run();
        }}
      >
        <Field label={t("people.name")} hint={t("login.name-hint")}>
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
        <Wrong error={invite.error} />
        <div className="actions">
          <Button onClick={onClose}>{t("common.cancel")}</Button>
          <Button tone="main" type="submit" busy={invite.busy}>
            {t("people.invite")}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
