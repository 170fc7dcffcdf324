/** A value outside React that components follow. */

import { useSyncExternalStore } from "react";

export interface Cell<T> {
  get(): T;
  set(value: T): void;
  subscribe(changed: () => void): () => void;
}

export function cell<T>(value: T): Cell<T> {
  let now = value;
  const followers = new Set<() => void>();
  return {
    get: () => now,
    set(next) {
      if (Object.is(next, now)) return;
      now = next;
      for (const follower of [...followers]) follower();
    },
    subscribe(changed) {
      followers.add(changed);
      return () => followers.delete(changed);
    },
  };
}

export function useCell<T>(of: Cell<T>): T {
  return useSyncExternalStore(of.subscribe, of.get);
}
