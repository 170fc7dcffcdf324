import { useState } from "react";
import { call } from "../api/client";
import { Button, Dialog, Field, useAction, useToast, Wrong } from "../components/parts";
import { LANGUAGES, type Language, useWords } from "../i18n";
import { type Theme, useSession } from "../state";

const THEMES: Theme[] = ["system", "light", "dark"];

/** Who is signed in, and the reader's own choices. */
export function Account({ theme, setTheme }: { theme: Theme; setTheme: (theme: Theme) => void }) {
  const { t, code, language, speak } = useWords();
  const { session, refresh } = useSession();
  const [open, setOpen] = useState(false);
  const leave = useAction(async () => {
    await call("DELETE", "/api/v1/session");
    await refresh();
  });
  return (
    <>
      <Button onClick={() => setOpen(true)}>{session?.name ?? t("account.title")}</Button>
      {open && (
        <Dialog title={t("account.title")} onClose={() => setOpen(false)}>
          <p>
            <strong>{session?.name}</strong>{" "}
            <span className="quiet">{code("role", session?.role ?? "")}</span>
          </p>
          <Field label={t("account.language")}>
            {(ids) => (
              <select
                {...ids}
                value={language}
                onChange={(event) => speak(event.target.value as Language)}
              >
                {Object.entries(LANGUAGES).map(([name, title]) => (
                  <option key={name} value={name}>
                    {title}
                  </option>
                ))}
              </select>
            )}
          </Field>
          <Field label={t("account.theme")}>
            {(ids) => (
              <select
                {...ids}
                value={theme}
                onChange={(event) => setTheme(event.target.value as Theme)}
              >
                {THEMES.map((each) => (
                  <option key={each} value={each}>
                    {code("theme", each)}
                  </option>
                ))}
              </select>
            )}
          </Field>
          {session?.kind === "person" && <NewPassword />}
          <Wrong error={leave.error} />
          <div className="actions">
            <Button onClick={() => setOpen(false)}>{t("common.close")}</Button>
            <Button tone="danger" busy={leave.busy} onClick={() => void leave.run()}>
              {t("account.leave")}
            </Button>
          </div>
        </Dialog>
      )}
    </>
  );
}

function NewPassword() {
  const { t } = useWords();
  const say = useToast();
  const [before, setBefore] = useState("");
  const [after, setAfter] = useState("");
  const change = useAction(async () => {
    await call("PUT", "/api/v1/session/password", { old: before, new: after });
    setBefore("");
    setAfter("");
    say(t("account.password-changed"));
  });
  return (
    <details>
      <summary>{t("account.change-password")}</summary>
      <form
        className="stack tight"
        onSubmit={(event) => {
          event.preventDefault();
          void change.run();
        }}
      >
        <Field label={t("account.old-password")}>
          {(ids) => (
            <input
              {...ids}
              type="password"
              autoComplete="current-password"
              required
              value={before}
              onChange={(event) => setBefore(event.target.value)}
            />
          )}
        </Field>
        <Field label={t("account.new-password")} hint={t("login.password-hint")}>
          {(ids) => (
            <input
              {...ids}
              type="password"
              autoComplete="new-password"
              required
              minLength={12}
              value={after}
              onChange={(event) => setAfter(event.target.value)}
            />
          )}
        </Field>
        <Wrong error={change.error} />
        <Button type="submit" busy={change.busy}>
          {t("account.change-password")}
        </Button>
      </form>
    </details>
  );
}
