import type { Language } from "./i18n";

const LOCALES: Record<Language, string> = { en: "en-GB", zh: "zh-CN" };

export function number(value: number, language: Language, digits = 0): string {
  return value.toLocaleString(LOCALES[language], { maximumFractionDigits: digits });
}

export function percent(share: number, language: Language): string {
  return share.toLocaleString(LOCALES[language], { style: "percent", maximumFractionDigits: 1 });
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count: number, language: Language): string {
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, language, unit === 0 ? 0 : 1)} ${UNITS[unit]}`;
}

const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["second", 60],
  ["minute", 60],
  ["hour", 24],
  ["day", 30],
  ["month", 12],
  ["year", Number.POSITIVE_INFINITY],
];

/** `at` and `now` in seconds since the epoch. */
export function relative(at: number, now: number, language: Language): string {
  let value = at - now;
  for (const [unit, length] of STEPS) {
    if (Math.abs(value) < length) {
      const format = new Intl.RelativeTimeFormat(LOCALES[language], { numeric: "auto" });
      return format.format(Math.round(value), unit);
    }
    value /= length;
  }
  return exact(at, language);
}

export function exact(at: number, language: Language): string {
  return new Date(at * 1000).toLocaleString(LOCALES[language], {
    dateStyle: "medium",
    timeStyle: "medium",
  });
}

export function short(digest: string): string {
  return digest.length > 12 ? `${digest.slice(0, 12)}…` : digest;
}
