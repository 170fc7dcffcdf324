import {
  createContext,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useState,
  useSyncExternalStore,
} from "react";
import { call, onSignedOut } from "./api/client";
import { type Connection, Live } from "./api/live";
import type { Role, Session } from "./api/shapes";
import { remember, remembered } from "./remembered";

interface Signed {
  session: Session | null;
  error: unknown;
  /** Reads anew who is signed in. */
  refresh: () => Promise<void>;
}

const SignedIn = createContext<Signed | null>(null);
const Listening = createContext<Live | null>(null);

export function Provided({ children, live }: { children: ReactNode; live?: Live }) {
  const [session, setSession] = useState<Session | null>(null);
  const [error, setError] = useState<unknown>(null);
  const refresh = useCallback(async () => {
    try {
      setSession(await call<Session>("GET", "/api/v1/session"));
      setError(null);
    } catch (caught) {
      setError(caught);
    }
  }, []);
  const [own] = useState(() => live ?? new Live(liveUrl, () => void refresh()));
  useEffect(() => {
    void refresh();
    return onSignedOut(() => void refresh());
  }, [refresh]);
  return (
    <SignedIn.Provider value={{ session, error, refresh }}>
      <Listening.Provider value={own}>{children}</Listening.Provider>
    </SignedIn.Provider>
  );
}

function liveUrl(): string {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/v1/live`;
}

export function useSession(): Signed {
  const signed = useContext(SignedIn);
  if (!signed) throw new Error("outside of <Provided>");
  return signed;
}

/** Whether who is signed in has one of these roles. */
export function useMay(...roles: Role[]): boolean {
  const role = useSession().session?.role;
  return role !== null && role !== undefined && roles.includes(role);
}

function useLiveConnection(): Live {
  const live = useContext(Listening);
  if (!live) throw new Error("outside of <Provided>");
  return live;
}

/** What a topic is now, and why it is not told. */
export function useTopic<State>(topic: string): { state: State | undefined; problem?: string } {
  const live = useLiveConnection();
  const watch = useCallback((changed: () => void) => live.watch(topic, changed), [live, topic]);
  const state = useSyncExternalStore(watch, () => live.state(topic));
  const problem = live.problem(topic);
  return {
    state: state as State | undefined,
    ...(problem === undefined ? {} : { problem }),
  };
}

export function useConnection(): Connection {
  const live = useLiveConnection();
  const watch = useCallback((changed: () => void) => live.watchConnection(changed), [live]);
  return useSyncExternalStore(watch, () => live.connection);
}

/** What `read` gives, read when the page opens and when `again` is called. */
export function useRead<Answer>(read: () => Promise<Answer>, ...on: unknown[]) {
  const [answer, setAnswer] = useState<Answer>();
  const [error, setError] = useState<unknown>(null);
  const again = useCallback(async () => {
    try {
      setAnswer(await read());
      setError(null);
    } catch (caught) {
      setError(caught);
    }
  }, on);
  useEffect(() => void again(), [again]);
  return { answer, error, again };
}

export type Theme = "system" | "light" | "dark";

export function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useState<Theme>(() => {
    const chosen = remembered("theme");
    return chosen === "light" || chosen === "dark" ? chosen : "system";
  });
  useEffect(() => {
    if (theme === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    remember("theme", theme);
  }, [theme]);
  return [theme, setTheme];
}
