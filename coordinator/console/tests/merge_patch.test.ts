import { describe, expect, it } from "vitest";
import { type Json, mergePatch } from "../src/api/merge_patch";

/** RFC 7396, appendix A: original, patch, result. */
const CASES: [Json, Json, Json][] = [
  [{ a: "b" }, { a: "c" }, { a: "c" }],
  [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }],
  [{ a: "b" }, { a: null }, {}],
  [{ a: "b", b: "c" }, { a: null }, { b: "c" }],
  [{ a: ["b"] }, { a: "c" }, { a: "c" }],
  [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
  [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }],
  [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
  [
    ["a", "b"],
    ["c", "d"],
    ["c", "d"],
  ],
  [{ a: "b" }, ["c"], ["c"]],
  [{ a: "foo" }, null, null],
  [{ a: "foo" }, "bar", "bar"],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: "b", c: null }, { a: "b" }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
];

describe("a merge patch", () => {
  it.each(CASES)("makes of %j with %j: %j", (original, patch, result) => {
    expect(mergePatch(original, patch)).toEqual(result);
  });

  it("leaves what it was applied to, and shares what it does not touch", () => {
    const before = { a: { x: 1 }, b: { y: 2 } };
    const after = mergePatch(before, { a: { x: 3 } }) as typeof before;
    expect(before).toEqual({ a: { x: 1 }, b: { y: 2 } });
    expect(after.b).toBe(before.b);
  });

  it("takes a member called __proto__ for a member", () => {
    const after = mergePatch({}, JSON.parse('{"__proto__": {"x": 1}}')) as Record<string, Json>;
    expect(Object.keys(after)).toEqual(["__proto__"]);
    expect(({} as Record<string, unknown>).x).toBeUndefined();
  });
});
