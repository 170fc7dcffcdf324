import { useSyncExternalStore } from "react";

/** Where the page is: the parts of the fragment, decoded. `#/runs/tickets` is ["runs", "tickets"]. */
export function usePlace(): string[] {
  const hash = useSyncExternalStore(onHash, () => location.hash);
  return placeOf(hash);
}

export function placeOf(hash: string): string[] {
  return hash
    .replace(/^#\/?/, "")
    .split("/")
    .filter(Boolean)
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
}

export function linkTo(...parts: string[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

export function go(...parts: string[]): void {
  location.hash = linkTo(...parts);
}

function onHash(changed: () => void): () => void {
  addEventListener("hashchange", changed);
  return () => removeEventListener("hashchange", changed);
}
