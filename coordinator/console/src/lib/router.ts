/** The page is named in the address's fragment, so nothing of it reaches a server. */

import { useSyncExternalStore } from "react";

/** `#/runs/new` is `["runs", "new"]`. What cannot be decoded is taken as it stands. */
export function readPath(hash: string): string[] {
  return hash
    .replace(/^#?\/?/, "")
    .split("/")
    .filter((part) => part !== "")
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
}

/** The address of a page: `address("runs", "a/b")` is `#/runs/a%2Fb`. */
export function address(...parts: string[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

function subscribe(changed: () => void): () => void {
  window.addEventListener("hashchange", changed);
  return () => window.removeEventListener("hashchange", changed);
}

export function usePath(): string[] {
  return readPath(useSyncExternalStore(subscribe, () => window.location.hash));
}

export function go(...parts: string[]): void {
  window.location.hash = address(...parts);
}

/** The same without leaving the present address in the history: for one with a secret in it. */
export function goInstead(...parts: string[]): void {
  window.history.replaceState(null, "", address(...parts));
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}
