/** The small parts, and that the core needs nothing of a browser. */

import { createHash } from "node:crypto";
import vm from "node:vm";
import { build } from "vite";
import { describe, expect, test } from "vitest";
import { backoffMs, LONGEST_WAIT_MS, mayReconnect } from "../src/client/backoff.ts";
import { newId, uuid7From } from "../src/client/ids.ts";
import { Session } from "../src/client/session.ts";
import { sha256, utf8 } from "../src/client/sha256.ts";

describe("sha256", () => {
  test.each([0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 1000, 100_003])("of %i bytes is that of node:crypto", (length) => {
    const data = Uint8Array.from({ length }, (_, i) => (i * 31) & 255);
    expect(sha256(data)).toBe(createHash("sha256").update(data).digest("hex"));
  });

  test.each(["", "plain", "Größe", "漢字", "👩‍👩‍👧 👍🏽", "a\u0000b", "\u{10ffff}"])(
    "UTF-8 of %j is that of node",
    (text) => {
      expect([...utf8(text)]).toEqual([...Buffer.from(text)]);
    },
  );

  test("a lone surrogate becomes U+FFFD", () => {
    expect([...utf8("a\ud800b\udc00")]).toEqual([...Buffer.from("a\ufffdb\ufffd")]);
  });
});

describe("ids", () => {
  test("are UUIDs of version 7", () => {
    expect(newId()).toMatch(/^[\da-f]{8}-[\da-f]{4}-7[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/);
  });

  test("carry the time first, so they sort by it", () => {
    const random = new Uint8Array(10);
    expect(uuid7From(0x017f22e279b0, random)).toBe("017f22e2-79b0-7000-8000-000000000000");
    expect(uuid7From(1, random) < uuid7From(2, random)).toBe(true);
  });
});

describe("backoff", () => {
  test("doubles from a quarter second up to half a minute, and jitters fully", () => {
    expect([1, 2, 3, 8, 9, 100].map((failures) => backoffMs(failures, 1))).toEqual([
      250,
      500,
      1000,
      LONGEST_WAIT_MS,
      LONGEST_WAIT_MS,
      LONGEST_WAIT_MS,
    ]);
    expect(backoffMs(100, 0)).toBe(0);
  });

  test("knows which closes are final", () => {
    expect([1001, 1006, 1011, 1012, 1013].every(mayReconnect)).toBe(true);
    expect([1000, 1007, 1009, 4400, 4401, 4403, 4408, 4429].some(mayReconnect)).toBe(false);
  });
});

describe("session", () => {
  test("a malformed frame is refused and the session stays usable", () => {
    const session = new Session();
    session.send({ id: "m", messages: [] });
    expect(() => session.receive({ type: "delta", id: "m" } as never)).toThrow("delta: `after` is missing");
    expect(() => session.receive(7 as never)).toThrow("a frame is a map");
    expect(session.hello().type).toBe("hello");
  });

  test("what was saved is resumed from its cursor by another session", () => {
    const before = new Session();
    before.hello();
    before.receive(welcome);
    before.send({ id: "m", messages: [{ role: "user", content: "?" }] });
    before.outgoing();
    before.receive({ type: "attempt", id: "m", seq: 1, attempt: 1, target: "a", model: "a", mode: "fresh" });
    before.receive({ type: "delta", id: "m", after: 1, seq: 4, text: "Half" });

    const after = new Session();
    after.restore(JSON.parse(JSON.stringify(before.save())));
    expect(after.hello().resume).toEqual([{ id: "m", after: 4 }]);
    after.receive({ ...welcome, resumed: [{ id: "m", state: "streaming", seq: 9 }] });
    after.receive({ type: "delta", id: "m", after: 4, seq: 5, text: " done" });
    expect(after.messages.get("m")?.text).toBe("Half done");
  });
});

const welcome = {
  type: "welcome" as const,
  session: "s",
  user: "u",
  tier: "free",
  heartbeat_seconds: 20,
  max_frame_bytes: 1 << 20,
  resumed: [] as { id: string; state: string; seq: number }[],
  active: [],
  server_time: 0,
};

describe("as a library", () => {
  async function bundle(entry: string): Promise<string> {
    const built = await build({
      configFile: false,
      logLevel: "silent",
      root: new URL("..", import.meta.url).pathname,
      build: {
        write: false,
        minify: true,
        target: "es2022",
        lib: { entry, formats: ["iife"], name: "tidewire" },
        rolldownOptions: { external: ["@msgpack/msgpack"] },
      },
    });
    const [{ output }] = built as unknown as [{ output: [{ code: string }] }];
    return output[0].code;
  }

  test("the core runs without any global of a browser or of Node", async () => {
    const code = await bundle("src/client/session.ts");
    const global = vm.createContext({});
    vm.runInContext(code, global);
    const hello = vm.runInContext(
      `(() => { const s = new tidewire.Session(); s.send({ id: "m", messages: [] }); return JSON.stringify(s.hello()); })()`,
      global,
    );
    expect(JSON.parse(hello)).toMatchObject({ type: "hello" });
    const matches = vm.runInContext(
      `(() => {
        const s = new tidewire.Session();
        const m = s.resume("m");
        s.receive({ type: "snapshot", id: "m", seq: 1, attempt: 1, part: 1, last: true, text: "h\\u00e9" });
        const sha = "${createHash("sha256").update("hé").digest("hex")}";
        s.receive({ type: "done", id: "m", seq: 2, text_bytes: 3, text_sha256: sha });
        return m.state;
      })()`,
      global,
    );
    expect(matches).toBe("done");
  });
});
