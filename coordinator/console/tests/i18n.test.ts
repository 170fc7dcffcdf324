import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { describe, expect, it } from "vitest";
import { texts } from "../src/i18n";
import { type Key, translate } from "../src/lib/i18n";

const ALL = Object.entries(texts) as [Key, readonly [string, string]][];
const HAN = /\p{Script=Han}/u;
/** Names and units that are written the same way in Chinese. */
const SAME = /^[\p{Lu}\d\W_a-z]{0,12}$/u;

/** Attributes that a person sees or hears. */
const SHOWN = new Set(["aria-label", "title", "placeholder", "alt", "label"]);
const NAMES = new Set(["LLM OS", "English", "中文"]);
const WORD = /\p{L}{3}|\p{Script=Han}/u;

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
    const bare = chinese.replace(/\{\w+\}|`[^`]+`/g, "");
    expect(HAN.test(bare) || (chinese === english && SAME.test(bare)) || !/\p{L}/u.test(bare)).toBe(
      true,
    );
    const values = (text: string) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
    expect(values(chinese)).toEqual(values(english));
    const commands = (text: string) => [...text.matchAll(/`[^`]+`/g)].map(String).sort();
    expect(commands(chinese)).toEqual(commands(english));
  });

  it("hold the values they are given", () => {
    expect(translate("en", "common.retry-after", { seconds: 7 })).toBe("Try again in 7 s.");
    expect(translate("zh", "common.retry-after", { seconds: 7 })).toContain("7");
  });

  it.each(sources("src"))("%s shows no words that no dictionary has", (path) => {
    const text = readFileSync(path, "utf8");
    const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true, ts.ScriptKind.TSX);
    const loose: string[] = [];
    const look = (node: ts.Node): void => {
      if (ts.isJsxText(node)) loose.push(node.text.trim());
      if (ts.isJsxAttribute(node) && node.initializer && ts.isStringLiteral(node.initializer)) {
        if (SHOWN.has(node.name.getText())) loose.push(node.initializer.text);
      }
      ts.forEachChild(node, look);
    };
    look(source);
    expect(loose.filter((each) => WORD.test(each) && !NAMES.has(each))).toEqual([]);
  });
});
