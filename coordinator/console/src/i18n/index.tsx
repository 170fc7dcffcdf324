import { createContext, type ReactNode, useContext, useEffect, useMemo, useState } from "react";
import { remember, remembered } from "../remembered";
import { en } from "./en";
import { zh } from "./zh";

export const LANGUAGES = { en: "English", zh: "中文" } as const;
export type Language = keyof typeof LANGUAGES;
export type Word = keyof typeof en;
export type Values = Record<string, string | number>;

const DICTIONARIES: Record<Language, Record<Word, string>> = { en, zh };

/** The text for `word`, with `{name}` replaced by the value of that name. */
export function translate(language: Language, word: Word, values: Values = {}): string {
  return DICTIONARIES[language][word].replace(/\{(\w+)\}/g, (whole, name: string) =>
    name in values ? String(values[name]) : whole,
  );
}

/** Whether there is a text for what the API calls `code`, whose texts all begin with `group`. */
export function wordFor(group: string, code: string): Word | null {
  const word = `${group}.${code}`;
  return word in en ? (word as Word) : null;
}

interface Speech {
  language: Language;
  speak: (language: Language) => void;
  t: (word: Word, values?: Values) => string;
  /** The text for a code of the API; the code itself where there is none. */
  code: (group: string, code: string) => string;
}

const Speaking = createContext<Speech | null>(null);

export function Translated({ children }: { children: ReactNode }) {
  const [language, speak] = useState<Language>(preferred);
  useEffect(() => {
    document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
    remember("language", language);
  }, [language]);
  const speech = useMemo<Speech>(() => {
    const t = (word: Word, values?: Values) => translate(language, word, values);
    const code = (group: string, name: string) => {
      const word = wordFor(group, name);
      return word ? t(word) : name;
    };
    return { language, speak, t, code };
  }, [language]);
  return <Speaking.Provider value={speech}>{children}</Speaking.Provider>;
}

export function useWords(): Speech {
  const speech = useContext(Speaking);
  if (!speech) throw new Error("outside of <Translated>");
  return speech;
}

function preferred(): Language {
  const chosen = remembered("language");
  if (chosen === "en" || chosen === "zh") return chosen;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}
