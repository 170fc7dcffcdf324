/** What a person has chosen for this browser: language and theme. Kept there and nowhere else. */

import { cell } from "./cell";

export type Language = "en" | "zh";
export type Theme = "system" | "light" | "dark";

/** A browser may refuse to keep anything; then the choice lasts as long as the page. */
function kept(name: string): string | null {
  try {
    return window.localStorage.getItem(`llmos.${name}`);
  } catch {
    return null;
  }
}

function keep(name: string, value: string): void {
  try {
    window.localStorage.setItem(`llmos.${name}`, value);
  } catch {
    // As said above.
  }
}

function firstLanguage(): Language {
  const chosen = kept("language");
  if (chosen === "en" || chosen === "zh") return chosen;
  return window.navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

function firstTheme(): Theme {
  const chosen = kept("theme");
  return chosen === "light" || chosen === "dark" ? chosen : "system";
}

export const language = cell<Language>(firstLanguage());
export const theme = cell<Theme>(firstTheme());

function apply(): void {
  const root = document.documentElement;
  root.lang = language.get() === "zh" ? "zh-Hans" : "en";
  if (theme.get() === "system") delete root.dataset.theme;
  else root.dataset.theme = theme.get();
}

export function followSettings(): void {
  language.subscribe(() => keep("language", language.get()));
  theme.subscribe(() => keep("theme", theme.get()));
  language.subscribe(apply);
  theme.subscribe(apply);
  apply();
}
