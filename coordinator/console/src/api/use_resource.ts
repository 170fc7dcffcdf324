/** What a page asks for once, or page by page, with the state of asking. */

import { useCallback, useEffect, useState } from "react";
import { api, type Page, Problem, type Query } from "./api";

export interface Resource<T> {
  data: T | null;
  problem: Problem | null;
  loading: boolean;
  reload(): void;
}

function asProblem(err: unknown): Problem {
  if (err instanceof Problem) return err;
  return new Problem({ status: 0, code: "console", detail: String(err) });
}

/** `null` asks for nothing. What was there stays to be seen while it is asked for again. */
export function useResource<T>(path: string | null): Resource<T> {
  const [turn, setTurn] = useState(0);
  const [found, setFound] = useState<{ path: string; data: T | null; problem: Problem | null }>();
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new turn asks again
  useEffect(() => {
    if (path === null) return;
    const leaving = new AbortController();
    api.get<T>(path, {}, leaving.signal).then(
      (data) => setFound({ path, data, problem: null }),
      (err: unknown) => {
        if (leaving.signal.aborted) return;
        setFound((before) => ({
          path,
          data: before?.path === path ? before.data : null,
          problem: asProblem(err),
        }));
      },
    );
    return () => leaving.abort();
  }, [path, turn]);
  const current = found?.path === path ? found : undefined;
  const reload = useCallback(() => setTurn((before) => before + 1), []);
  return {
    data: current?.data ?? null,
    problem: current?.problem ?? null,
    loading: path !== null && !current,
    reload,
  };
}

export interface Listing<T> {
  items: T[];
  problem: Problem | null;
  loading: boolean;
  /** Whether there is another page. */
  more: boolean;
  next(): void;
  reload(): void;
}

/** A listing, page after page. `query` must not hold `cursor`. */
export function useListing<T>(path: string, query: Query = {}): Listing<T> {
  const asked = JSON.stringify([path, query]);
  const [turn, setTurn] = useState(0);
  const [place, setPlace] = useState({ asked, cursor: "" });
  const cursor = place.asked === asked ? place.cursor : "";
  const [state, setState] = useState<{
    asked: string;
    items: T[];
    next: string | null;
    problem: Problem | null;
    loading: boolean;
  }>({ asked, items: [], next: null, problem: null, loading: true });
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new turn asks again
  useEffect(() => {
    const [address, others] = JSON.parse(asked) as [string, Query];
    const leaving = new AbortController();
    setState((before) => ({ ...before, loading: true, problem: null }));
    api.get<Page<T>>(address, { ...others, cursor }, leaving.signal).then(
      (page) =>
        setState((before) => ({
          asked,
          items: cursor === "" ? page.items : [...before.items, ...page.items],
          next: page.next,
          problem: null,
          loading: false,
        })),
      (err: unknown) => {
        if (leaving.signal.aborted) return;
        setState((before) => ({ ...before, asked, problem: asProblem(err), loading: false }));
      },
    );
    return () => leaving.abort();
  }, [asked, cursor, turn]);
  const { next: following } = state;
  const mine = state.asked === asked;
  return {
    items: mine ? state.items : [],
    problem: mine ? state.problem : null,
    loading: state.loading || !mine,
    more: mine && following !== null,
    next: () => setPlace({ asked, cursor: following ?? "" }),
    reload: () => {
      setPlace({ asked, cursor: "" });
      setTurn((before) => before + 1);
    },
  };
}

export interface Action<A extends unknown[]> {
  run(...args: A): Promise<void>;
  busy: boolean;
  problem: Problem | null;
  reset(): void;
}

/** Something that a person does: busy while it lasts, a problem where it was refused. */
export function useAction<A extends unknown[]>(act: (...args: A) => Promise<void>): Action<A> {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  return {
    busy,
    problem,
    reset: () => setProblem(null),
    async run(...args) {
      setBusy(true);
      setProblem(null);
      try {
        await act(...args);
      } catch (err) {
        setProblem(asProblem(err));
      } finally {
        setBusy(false);
      }
    },
  };
}
