import { type ReactNode, useEffect, useRef, useState } from "react";
import type { Role } from "./api/shapes";
import { Icon, type IconName } from "./components/icons";
import { Button, Loading, Wrong } from "./components/parts";
import { useWords, type Word } from "./i18n";
import logo from "./icon.svg";
import { Account } from "./pages/account";
import { AuditPage } from "./pages/audit";
import { FleetPage } from "./pages/fleet";
import { KeysPage } from "./pages/keys";
import { LoginPage } from "./pages/login";
import { ModelsPage } from "./pages/models";
import { PeoplePage } from "./pages/people";
import { PlaygroundPage } from "./pages/playground";
import { RunPage } from "./pages/run";
import { RunsPage } from "./pages/runs";
import { ServingPage } from "./pages/serving";
import { SubmitPage } from "./pages/submit";
import { linkTo, usePlace } from "./router";
import { useConnection, useSession, useTheme } from "./state";

interface Entry {
  place: string;
  word: Word;
  icon: IconName;
  roles: Role[];
  show: (rest: string[]) => ReactNode;
}

const READING: Role[] = ["viewer", "operator", "admin"];

const PAGES: Entry[] = [
  { place: "fleet", word: "nav.fleet", icon: "fleet", roles: READING, show: () => <FleetPage /> },
  {
    place: "runs",
    word: "nav.runs",
    icon: "runs",
    roles: READING,
    show: ([run]) =>
      run === undefined ? (
        <RunsPage />
      ) : run === "new" ? (
        <SubmitPage />
      ) : (
        <RunPage key={run} run={run} />
      ),
  },
  {
    place: "models",
    word: "nav.models",
    icon: "models",
    roles: READING,
    show: () => <ModelsPage />,
  },
  {
    place: "playground",
    word: "nav.playground",
    icon: "playground",
    roles: ["caller", "operator", "admin"],
    show: () => <PlaygroundPage />,
  },
  {
    place: "serving",
    word: "nav.serving",
    icon: "serving",
    roles: READING,
    show: () => <ServingPage />,
  },
  {
    place: "audit",
    word: "nav.audit",
    icon: "audit",
    roles: ["viewer", "auditor", "operator", "admin"],
    show: () => <AuditPage />,
  },
  {
    place: "keys",
    word: "nav.keys",
    icon: "keys",
    roles: ["auditor", "admin"],
    show: () => <KeysPage />,
  },
  {
    place: "people",
    word: "nav.people",
    icon: "people",
    roles: ["auditor", "admin"],
    show: () => <PeoplePage />,
  },
];

export function App() {
  const { session, error, refresh } = useSession();
  const { t } = useWords();
  const place = usePlace();
  const [theme, setTheme] = useTheme();

  if (session === null) {
    return (
      <main className="sign-in">
        <div className="stack">
          {error ? (
            <>
              <Wrong error={error} />
              <Button onClick={() => void refresh()}>{t("common.again")}</Button>
            </>
          ) : (
            <Loading />
          )}
        </div>
      </main>
    );
  }
  if (session.role === null || place[0] === "login") return <LoginPage link={place[1] ?? ""} />;

  const role = session.role;
  const mine = PAGES.filter((page) => page.roles.includes(role));
  const here =
    mine.find((page) => page.place === place[0]) ?? (place.length === 0 ? mine[0] : undefined);
  return (
    <Frame pages={mine} here={here} end={<Account theme={theme} setTheme={setTheme} />}>
      {here ? here.show(place.slice(1)) : <p>{t("common.nothing-here")}</p>}
    </Frame>
  );
}

function Frame({
  pages,
  here,
  end,
  children,
}: {
  pages: Entry[];
  here: Entry | undefined;
  end: ReactNode;
  children: ReactNode;
}) {
  const { t } = useWords();
  const [open, setOpen] = useState(false);
  const main = useRef<HTMLElement>(null);
  const title = here ? t(here.word) : "";
  useEffect(() => {
    document.title = title ? `${title} · LLM OS` : "LLM OS";
  }, [title]);
  return (
    <div className="frame">
      <button type="button" className="skip" onClick={() => main.current?.focus()}>
        {t("nav.skip")}
      </button>
      <aside className={open ? "side open" : "side"}>
        <a className="brand" href={linkTo()}>
          <img src={logo} alt="" />
          LLM OS
        </a>
        <Button
          small
          className="menu-button"
          aria-expanded={open}
          aria-label={t("nav.menu")}
          onClick={() => setOpen(!open)}
        >
          <Icon name="menu" />
        </Button>
        <nav className="nav" aria-label={t("nav.pages")}>
          {pages.map((page) => (
            <a
              key={page.place}
              href={linkTo(page.place)}
              aria-current={page === here ? "page" : undefined}
              onClick={() => setOpen(false)}
            >
              <Icon name={page.icon} />
              {t(page.word)}
            </a>
          ))}
        </nav>
        <div className="side-end">
          <ConnectionState />
          {end}
        </div>
      </aside>
      <main className="content" ref={main} tabIndex={-1}>
        {children}
      </main>
    </div>
  );
}

function ConnectionState() {
  const { t } = useWords();
  const connection = useConnection();
  if (connection === "off") return null;
  const tone = connection === "open" ? "good" : "warn";
  return (
    <div className="connection" role="status">
      <span className={`dot ${tone}`} aria-hidden="true" />
      {t(connection === "open" ? "live.open" : "live.lost")}
    </div>
  );
}
