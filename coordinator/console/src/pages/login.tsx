import { useEffect, useState } from "react";
import { call } from "../api/client";
import type { Link } from "../api/shapes";
import { Button, Card, Copyable, Field, Loading, useAction, Wrong } from "../components/parts";
import { LANGUAGES, type Language, useWords } from "../i18n";
import logo from "../icon.svg";
import { useSession } from "../state";

/** Opens the console: by a one-time link, by name and password, or by the company's own login. */
export function LoginPage({ link }: { link: string }) {
  const { t, language, speak } = useWords();
  const { session } = useSession();
  return (
    <main className="sign-in">
      <div className="stack">
        <div className="row">
          <img src={logo} alt="" width={40} height={40} />
          <h1>LLM OS</h1>
        </div>
        {link ? <ByLink link={link} /> : <ByPassword />}
        {session?.first && !link && (
          <Card title={t("login.first-title")}>
            <p className="quiet">{t("login.first-about")}</p>
            <Copyable text="llmos people link --first" />
          </Card>
        )}
        <select
          className="input"
          aria-label={t("account.language")}
          value={language}
          onChange={(event) => speak(event.target.value as Language)}
        >
          {Object.entries(LANGUAGES).map(([name, title]) => (
            <option key={name} value={name}>
              {title}
            </option>
          ))}
        </select>
      </div>
    </main>
  );
}

function ByPassword() {
  const { t } = useWords();
  const { session, refresh } = useSession();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const enter = useAction(async () => {
    await call("POST", "/api/v1/session", { name, password });
    setPassword("");
    leaveLoginPlace();
    await refresh();
  });
  return (
    <Card title={t("login.title")}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void enter.run();
        }}
      >
        <Field label={t("login.name")}>
          {(ids) => (
            <input
              {...ids}
              autoComplete="username"
              required
              value={name}
              onChange={(event) => setName(event.target.value)}
            />
          )}
        </Field>
        <Field label={t("login.password")}>
          {(ids) => (
            <input
              {...ids}
              type="password"
              autoComplete="current-password"
              required
              value={password}
              onChange={(event) => setPassword(event.target.value)}
            />
          )}
        </Field>
        <Wrong error={enter.error} />
        <Button tone="main" type="submit" busy={enter.busy}>
          {t("login.enter")}
        </Button>
        {session?.oidc && (
          <a className="button" href="/api/v1/session/oidc">
            {t("login.oidc")}
          </a>
        )}
      </form>
    </Card>
  );
}

function ByLink({ link }: { link: string }) {
  const { t, code } = useWords();
  const { refresh } = useSession();
  const [known, setKnown] = useState<Link | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  useEffect(() => {
    let left = false;
    call<Link>("POST", "/api/v1/session/link", { link }).then(
      (found) => {
        if (left) return;
        setKnown(found);
        setName(found.name ?? "");
      },
      (caught) => !left && setError(caught),
    );
    return () => {
      left = true;
    };
  }, [link]);
  const enter = useAction(async () => {
    await call("POST", "/api/v1/session", { link, name, password });
    setPassword("");
    leaveLoginPlace();
    await refresh();
  });
  if (error) {
    return (
      <Card title={t("login.link-title")}>
        <div className="stack">
          <Wrong error={error} />
          <p className="quiet">{t("login.link-spent")}</p>
          <a className="button" href="#/">
            {t("login.title")}
          </a>
        </div>
      </Card>
    );
  }
  if (!known) return <Loading lines={3} />;
  return (
    <Card title={t(`login.${known.purpose}`)}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void enter.run();
        }}
      >
        <p className="quiet">{t("login.link-about", { role: code("role", known.role) })}</p>
        <Field label={t("login.name")} hint={known.name ? undefined : t("login.name-hint")}>
          {(ids) => (
            <input
              {...ids}
              autoComplete="username"
              required
              readOnly={known.name !== null}
              pattern="[a-z0-9]([a-z0-9\-]{0,46}[a-z0-9])?"
              value={name}
              onChange={(event) => setName(event.target.value)}
            />
          )}
        </Field>
        <Field label={t("login.choose-password")} hint={t("login.password-hint")}>
          {(ids) => (
            <input
              {...ids}
              type="password"
              autoComplete="new-password"
              required
              minLength={12}
              value={password}
              onChange={(event) => setPassword(event.target.value)}
            />
          )}
        </Field>
        <Wrong error={enter.error} />
        <Button tone="main" type="submit" busy={enter.busy}>
          {t("login.enter")}
        </Button>
      </form>
    </Card>
  );
}

/** A link that was spent has no place in the history of the browser. */
function leaveLoginPlace(): void {
  history.replaceState(null, "", "#/");
  dispatchEvent(new HashChangeEvent("hashchange"));
}
