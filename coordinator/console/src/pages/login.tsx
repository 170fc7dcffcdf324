/** Logging in: with a password, with a link from an administrator, or at an identity provider. */

import { type FormEvent, type ReactNode, useEffect, useState } from "react";
import { api, Problem } from "../api/api";
import { useAction } from "../api/use_resource";
import { Card, Notice, ProblemNotice, Skeleton, withCode } from "../components/basic";
import { Button } from "../components/button";
import { Copy } from "../components/copy";
import { TextField } from "../components/field";
import { Switches } from "../components/layout";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address, goInstead } from "../lib/router";
import { useSession } from "../lib/session";

/** As the coordinator asks for; it looks again. */
const LEAST_PASSWORD = 12;

interface LinkFacts {
  purpose: "first" | "invite" | "reset";
  name: string | null;
  role: string;
  expires_at: number;
}

export function Login({ link }: { link: string | null }) {
  return (
    <main className="login">
      <img src={`${import.meta.env.BASE_URL}mark.svg`} alt="LLM OS" width={52} height={52} />
      {link === null ? <WithPassword /> : <WithLink key={link} link={link} />}
      <Switches />
    </main>
  );
}

function Form(props: { onSubmit: () => void; children: ReactNode }) {
  return (
    <form
      className="stack"
      noValidate
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        props.onSubmit();
      }}
    >
      {props.children}
    </form>
  );
}

function WithPassword() {
  const t = useText();
  const session = useSession();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [tried, setTried] = useState(false);
  const entering = useAction(async () => {
    try {
      await api.post("/api/v1/session", { name: name.trim(), password });
    } catch (err) {
      if (err instanceof Problem && err.status === 401) {
        throw new Problem({ status: 401, code: err.code, detail: t("login.wrong") });
      }
      throw err;
    }
    session.reload();
  });
  const missing = (value: string) => (tried && value === "" ? t("login.needed") : undefined);
  return (
    <Card title={t("login.title")}>
      <div className="stack">
        {session.data?.first && (
          <Notice>
            <div className="stack">
              <p>{withCode(t("login.first"))}</p>
              <Copy text="llmos people link" />
            </div>
          </Notice>
        )}
        <Form
          onSubmit={() => {
            setTried(true);
            if (name.trim() && password && !entering.busy) void entering.run();
          }}
        >
          <TextField
            label={t("login.name")}
            value={name}
            onChange={setName}
            autoComplete="username"
            error={missing(name.trim())}
          />
          <TextField
            label={t("login.password")}
            value={password}
            onChange={setPassword}
            type="password"
            autoComplete="current-password"
            error={missing(password)}
          />
          <ProblemNotice problem={entering.problem} />
          <Button type="submit" kind="primary" busy={entering.busy}>
            {t("login.go")}
          </Button>
        </Form>
        {session.data?.oidc && (
          <a className="button" href="/api/v1/session/oidc">
            {t("login.oidc")}
          </a>
        )}
      </div>
    </Card>
  );
}

function WithLink({ link }: { link: string }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const session = useSession();
  const [facts, setFacts] = useState<LinkFacts | null>(null);
  const asking = useAction(async () => {
    setFacts(await api.post<LinkFacts>("/api/v1/session/link", { link }));
  });
  const { run: ask } = asking;
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [tried, setTried] = useState(false);
  // biome-ignore lint/correctness/useExhaustiveDependencies: once per link
  useEffect(() => {
    void ask();
  }, [link]);
  const entering = useAction(async () => {
    const chosen = facts?.name ?? name.trim();
    await api.post("/api/v1/session", { link, name: chosen, password });
    // The link is spent, and still nothing for the browser's history.
    goInstead();
    session.reload();
  });

  if (asking.problem?.status === 401) {
    return (
      <Card title={t("login.link.dead")}>
        <div className="stack">
          <p>{t("login.link.dead.about")}</p>
          <Copy text="llmos people link" />
          <a href={address("login")}>{t("login.instead")}</a>
        </div>
      </Card>
    );
  }
  if (!facts) {
    return (
      <Card>
        {asking.problem ? <ProblemNotice problem={asking.problem} retry={ask} /> : <Skeleton />}
      </Card>
    );
  }

  const errors = {
    name: facts.name === null && name.trim() === "" ? t("login.needed") : undefined,
    password: password.length < LEAST_PASSWORD ? t("login.too-short") : undefined,
    again: again === password ? undefined : t("login.differ"),
  };
  const role = code("role", facts.role);
  const who = facts.name ?? "";
  return (
    <Card
      title={t(`login.link.${facts.purpose}`, { name: who })}
      about={t(`login.link.${facts.purpose}.about`, { role })}
    >
      <Form
        onSubmit={() => {
          setTried(true);
          if (!errors.name && !errors.password && !errors.again && !entering.busy) {
            void entering.run();
          }
        }}
      >
        <TextField
          label={t("login.name")}
          value={facts.name ?? name}
          readOnly={facts.name !== null}
          onChange={setName}
          autoComplete="username"
          error={tried ? errors.name : undefined}
        />
        <TextField
          label={t("login.password")}
          value={password}
          onChange={setPassword}
          type="password"
          autoComplete="new-password"
          hint={t("login.password.hint")}
          error={tried ? errors.password : undefined}
        />
        <TextField
          label={t("login.password-again")}
          value={again}
          onChange={setAgain}
          type="password"
          autoComplete="new-password"
          error={tried ? errors.again : undefined}
        />
        <ProblemNotice problem={entering.problem} />
        <Button type="submit" kind="primary" busy={entering.busy}>
          {t("login.link.go")}
        </Button>
        <p className="small soft">{t("login.link.ends", { at: f.exact(facts.expires_at) })}</p>
      </Form>
    </Card>
  );
}
