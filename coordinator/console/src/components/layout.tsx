/** What is around every page: navigation, live state, language, theme, and who is logged in. */

import { type ReactNode, useEffect, useRef, useState } from "react";
import { useLive, useLiveStatus } from "../api/live";
import type { AlarmsNow } from "../api/types";
import { useAction } from "../api/use_resource";
import { useCell } from "../lib/cell";
import { useCode, useText } from "../lib/i18n";
import { address } from "../lib/router";
import { logOut, READING, useMay, useSession } from "../lib/session";
import { type Language, language, type Theme, theme } from "../lib/settings";
import type { PageEntry } from "../pages";
import { Button } from "./button";
import { Dialog } from "./dialog";
import { Icon } from "./icon";
import { PasswordDialog } from "./password";

const IN_BOTTOM_BAR = 4;

export function Switches() {
  const t = useText();
  return (
    <div className="switches">
      <select
        className="choice"
        aria-label={t("common.language")}
        value={useCell(language)}
        onChange={(event) => language.set(event.target.value as Language)}
      >
        <option value="en">English</option>
        <option value="zh">中文</option>
      </select>
      <select
        className="choice"
        aria-label={t("common.theme")}
        value={useCell(theme)}
        onChange={(event) => theme.set(event.target.value as Theme)}
      >
        <option value="system">{t("common.theme.system")}</option>
        <option value="light">{t("common.theme.light")}</option>
        <option value="dark">{t("common.theme.dark")}</option>
      </select>
    </div>
  );
}

/** How many alarms nobody has acknowledged; 0 where this role has no live feed. */
function useOpenAlarms(): number {
  const isLive = useMay(...READING);
  return useLive<AlarmsNow>(isLive ? "alarms" : null).data?.open ?? 0;
}

function Links(props: { pages: readonly PageEntry[]; current: string; onGo?: () => void }) {
  const t = useText();
  const open = useOpenAlarms();
  return (
    <ul>
      {props.pages.map((page) => (
        <li key={page.path}>
          <a
            href={address(page.path)}
            aria-current={page.path === props.current ? "page" : undefined}
            onClick={props.onGo}
          >
            <Icon name={page.icon} />
            {t(page.title)}
            {page.path === "alarms" && open > 0 && (
              <>
                <span className="nav-count" aria-hidden="true">
                  {open}
                </span>
                <span className="visually-hidden">{t("alarms.are-open", { n: open })}</span>
              </>
            )}
          </a>
        </li>
      ))}
    </ul>
  );
}

function Foot() {
  const t = useText();
  const code = useCode();
  const session = useSession();
  const status = useLiveStatus();
  const leaving = useAction(() => logOut(session));
  const [changing, setChanging] = useState(false);
  const { name, role, kind } = session.data ?? {};
  return (
    <div className="sidebar-foot">
      <span className="status" data-status={status} role="status">
        {t(`common.status.${status}`)}
      </span>
      <Switches />
      {name && (
        <div className="account">
          <span
            className="account-name"
            title={t("common.logged-in-as", { name, role: code("role", role ?? "") })}
          >
            {name} <span className="soft">{code("role", role ?? "")}</span>
          </span>
          {kind === "person" && (
            <Button kind="quiet" onClick={() => setChanging(true)}>
              {t("login.change")}
            </Button>
          )}
          <Button kind="quiet" busy={leaving.busy} onClick={leaving.run}>
            {t("common.log-out")}
          </Button>
        </div>
      )}
      {changing && <PasswordDialog onClose={() => setChanging(false)} />}
    </div>
  );
}

export function Layout(props: {
  pages: readonly PageEntry[];
  current: string;
  /** Changes with the page, so that readers of the screen begin at its top. */
  place: string;
  children: ReactNode;
}) {
  const t = useText();
  const [drawer, setDrawer] = useState(false);
  const main = useRef<HTMLElement>(null);
  const shown = useRef(props.place);
  useEffect(() => {
    if (shown.current === props.place) return;
    shown.current = props.place;
    setDrawer(false);
    window.scrollTo(0, 0);
    main.current?.focus({ preventScroll: true });
  }, [props.place]);

  const few = props.pages.slice(0, IN_BOTTOM_BAR);
  return (
    <div className="frame">
      <button type="button" className="skip" onClick={() => main.current?.focus()}>
        {t("common.skip")}
      </button>
      <aside className="sidebar">
        <a className="brand" href={address()}>
          <img src={`${import.meta.env.BASE_URL}mark.svg`} alt="" />
          LLM OS
        </a>
        <nav className="nav" aria-label={t("common.pages")}>
          <Links pages={props.pages} current={props.current} />
        </nav>
        <Foot />
      </aside>
      <main className="main" ref={main} tabIndex={-1}>
        {props.children}
      </main>
      <nav className="bottom-bar" aria-label={t("common.pages")}>
        {few.map((page) => (
          <a
            key={page.path}
            href={address(page.path)}
            aria-current={page.path === props.current ? "page" : undefined}
          >
            <Icon name={page.icon} size={22} />
            {t(page.title)}
          </a>
        ))}
        <button type="button" aria-haspopup="dialog" onClick={() => setDrawer(true)}>
          <Icon name="more" size={22} />
          {t("common.more-pages")}
        </button>
      </nav>
      {drawer && (
        <Dialog title="LLM OS" onClose={() => setDrawer(false)}>
          <nav className="nav" aria-label={t("common.pages")}>
            <Links pages={props.pages} current={props.current} onGo={() => setDrawer(false)} />
          </nav>
          <Foot />
        </Dialog>
      )}
    </div>
  );
}
