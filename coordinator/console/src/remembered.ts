/** A choice of the reader's that outlives the page; null where none was made or may be kept. */
export function remembered(name: string): string | null {
  try {
    return localStorage.getItem(`llmos.${name}`);
  } catch {
    return null;
  }
}

export function remember(name: string, value: string): void {
  try {
    localStorage.setItem(`llmos.${name}`, value);
  } catch {
    // A browser that keeps nothing shows the default next time.
  }
}
