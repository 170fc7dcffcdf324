/** Texts in two languages. A key stands beside both of its texts, so neither can be missing. */

import { texts } from "../i18n";
import { useCell } from "./cell";
import { type Language, language } from "./settings";

export type Key = keyof typeof texts;
export type Values = Record<string, string | number>;

/** `{name}` in a text is replaced by the value of that name. */
export function translate(to: Language, key: Key, values: Values = {}): string {
  const text: string = texts[key][to === "en" ? 0 : 1];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

export type Translate = (key: Key, values?: Values) => string;

export function useText(): Translate {
  const to = useCell(language);
  return (key, values) => translate(to, key, values);
}

/** A text for a code that a server sent; the code itself where this console does not know it. */
export function useCode(): (family: string, code: string) => string {
  const to = useCell(language);
  return (family, code) => {
    const key = `${family}.${code}`;
    return key in texts ? translate(to, key as Key) : code;
  };
}
