/** Numbers and times as a reader of the chosen language writes them. */

import { useCell } from "./cell";
import { type Language, language } from "./settings";

const LOCALE: Record<Language, string> = { en: "en-GB", zh: "zh-CN" };
const BYTES = ["B", "kB", "MB", "GB", "TB", "PB"] as const;
const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
  ["second", 1],
];

export interface Format {
  number(value: number, digits?: number): string;
  /** A share of one, in per cent. */
  percent(value: number, digits?: number): string;
  bytes(value: number): string;
  /** Seconds as the two largest units: 3 min 20 s. */
  duration(seconds: number): string;
  /** From one moment to another, both in seconds since the epoch: "3 minutes ago". */
  relative(at: number, now: number): string;
  exact(at: number): string;
}

const made: Partial<Record<Language, Format>> = {};

/** Made once: to make one of Intl's takes as long as a row of a table, and tables have a thousand. */
export function format(to: Language): Format {
  made[to] ??= newFormat(LOCALE[to]);
  return made[to];
}

function newFormat(locale: string): Format {
  const words = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  const moment = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "long" });
  const numbers = new Map<number, Intl.NumberFormat>();
  const number = (value: number, digits = 0) => {
    const known =
      numbers.get(digits) ?? new Intl.NumberFormat(locale, { maximumFractionDigits: digits });
    numbers.set(digits, known);
    return known.format(value);
  };
  const unit = (value: number, name: string) =>
    new Intl.NumberFormat(locale, { style: "unit", unit: name, unitDisplay: "short" }).format(
      value,
    );
  return {
    number,
    percent: (value, digits = 1) =>
      new Intl.NumberFormat(locale, {
        style: "percent",
        minimumFractionDigits: digits,
        maximumFractionDigits: digits,
      }).format(value),
    bytes(value) {
      let left = value;
      let step = 0;
      while (left >= 999.5 && step < BYTES.length - 1) {
        left /= 1000;
        step += 1;
      }
      return `${number(left, step > 0 && left < 100 ? 1 : 0)} ${BYTES[step]}`;
    },
    duration(seconds) {
      const parts: string[] = [];
      let left = Math.max(0, Math.round(seconds));
      for (const [name, size] of STEPS) {
        const whole = Math.floor(left / size);
        left -= whole * size;
        if (whole > 0 || (name === "second" && parts.length === 0)) parts.push(unit(whole, name));
      }
      return parts.slice(0, 2).join(" ");
    },
    relative(at, now) {
      const passed = at - now;
      const [name, size] = STEPS.find(([, size]) => Math.abs(passed) >= size) ?? ["second", 1];
      return words.format(Math.trunc(passed / size), name);
    },
    exact: (at) => moment.format(new Date(at * 1000)),
  };
}

export function useFormat(): Format {
  return format(useCell(language));
}
