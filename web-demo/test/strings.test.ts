/** Whatever code the protocol has, people read a sentence. */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { strings } from "../src/page/strings.ts";

const schema = readFileSync(new URL("../../protocol/schema/tidewire.d.ts", import.meta.url), "utf8");

/** The members of a union of texts in the generated types. */
function members(name: string): string[] {
  const [, union = ""] = new RegExp(`export type ${name} =([^;]+);`).exec(schema) ?? [];
  return [...union.matchAll(/"(\w+)"/g)].map(([, member = ""]) => member);
}

const SENTENCE = /^[A-Z][^_]+\.$/;

test("every error code has a text of its own", () => {
  const codes = members("ErrorCode");
  expect(codes).toContain("upstream_timeout");
  for (const code of codes) {
    expect(strings.errors.of(code), code).toMatch(SENTENCE);
    expect(strings.errors.of(code), code).not.toBe(strings.errors.unknown);
    expect(strings.attempts.why(code), code).toBe(strings.errors.of(code));
  }
});

test("every other reason of an attempt has one too, and only a switch is called one", () => {
  const reasons = members("AttemptReason");
  expect(reasons).toContain("owner_lost");
  const none = strings.attempts.why("");
  for (const code of reasons) {
    expect(strings.attempts.why(code), code).toMatch(SENTENCE);
    expect(strings.attempts.why(code), code).not.toBe(none);
  }
  const switches = ["upstream_timeout", ...reasons].filter((code) =>
    strings.attempts.notice("backup", code).startsWith("Switched to backup: "),
  );
  expect(switches).toEqual(["upstream_timeout", "hedged"]);
});

test("a code of a later version is not shown raw", () => {
  for (const code of ["weather", "constructor", ""]) {
    expect(strings.errors.of(code)).toBe(strings.errors.unknown);
    expect(strings.attempts.why(code)).toMatch(SENTENCE);
    expect(strings.panel.light("open", code, 0, 0)).toBe("Left alone, tried with the next question.");
  }
});
