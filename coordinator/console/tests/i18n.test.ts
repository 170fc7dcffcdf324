import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { texts } from "../src/i18n";
import { type Key, translate } from "../src/lib/i18n";

const ALL = Object.entries(texts) as [Key, readonly [string, string]][];
const HAN = /\p{Script=Han}/u;
/** Names and units that are written the same way in Chinese. */
const SAME = /^[\p{Lu}\d\W_a-z]{0,12}$/u;

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? sources(path) : path.endsWith(".tsx") ? [path] : [];
  });
}

describe("texts", () => {
  it.each(ALL)("%s is in both languages, with the same values", (_, [english, chinese]) => {
    expect(english).not.toBe("");
    expect(HAN.test(english)).toBe(false);
    expect(HAN.test(chinese) || (chinese === english && SAME.test(chinese))).toBe(true);
    const values = (text: string) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
    expect(values(chinese)).toEqual(values(english));
    const commands = (text: string) => [...text.matchAll(/`[^`]+`/g)].map(String).sort();
    expect(commands(chinese)).toEqual(commands(english));
  });

  it("hold the values they are given", () => {
    expect(translate("en", "common.retry-after", { seconds: 7 })).toBe("Try again in 7 s.");
    expect(translate("zh", "common.retry-after", { seconds: 7 })).toContain("7");
  });

  it.each(sources("src"))("%s has no words of its own", (path) => {
    // Between tags, without braces: a text that no dictionary has. Names of products may stay.
    const text = readFileSync(path, "utf8").replace(/=>/g, "");
    const loose = [...text.matchAll(/>([^<>{}=;()]*[A-Za-z]{3}[^<>{}=;()]*)</g)]
      .map((found) => (found[1] ?? "").trim())
      .filter((each) => !["LLM OS", "English", "中文"].includes(each));
    expect(loose).toEqual([]);
    expect(text).not.toMatch(/(?:aria-label|title|placeholder|alt)="(?!LLM OS)[^"]*[A-Za-z]{3}/);
  });
});
