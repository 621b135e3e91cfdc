/** Conversations to be awaited, and one as it is shown. `tests/e2e/test_typescript_client.py` has the real server. */

import { beforeEach, describe, expect, test } from "vitest";
import type { Conversation } from "../src/client/conversation.ts";
import { Conversations } from "../src/client/conversations.ts";
import { Client } from "../src/client/socket.ts";
import type { ErrorBody, ServerFrame } from "../src/client/types.ts";
import { FakeClock, FakeSocket } from "./fakes.ts";

let clock: FakeClock;
let sockets: FakeSocket[];
let client: Client;
let subject: Conversations;

const last = (): FakeSocket => sockets.at(-1) as FakeSocket;
const asked = (type: string): object[] => last().sent.filter((frame) => frame.type === type);
const say = (...frames: object[]): void => last().say(...(frames as ServerFrame[]));
const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));
const refusal = (code: string, retryable = false): ErrorBody => ({
  ...{ code, class: retryable ? "temporary" : "permanent", status: 400, message: code, retryable },
});

beforeEach(() => {
  clock = new FakeClock();
  sockets = [];
  const connect = (): FakeSocket => {
    sockets.push(new FakeSocket());
    return last();
  };
  client = new Client({ url: "ws://test", clock, random: () => 0.5, window: null, document: null, connect });
  subject = new Conversations(client);
});

function online(): void {
  client.start();
  last().welcome();
}

function reconnected(): void {
  last().onclose?.({ code: 1006, reason: "" });
  clock.advance(60_000);
  last().welcome();
}

describe("operations", () => {
  test("take turns within a conversation, each gets its own answer, and others do not wait", async () => {
    online();
    const [renamed, got, listed] = [subject.rename("c", "Trip"), subject.get("c"), subject.list({ limit: 5 })];
    expect(asked("conversation")).toEqual([
      { type: "conversation", op: "rename", conversation: "c", title: "Trip" },
      { type: "conversation", op: "list", limit: 5 },
    ]);
    say({ type: "conversation", op: "renamed", conversation: "c", seq: 4, title: "Trip" });
    say({ type: "conversation", op: "rename", conversation: "c", seq: 4 });
    expect(await renamed).toBeUndefined();
    expect(asked("conversation").at(-1)).toEqual({ type: "conversation", op: "get", conversation: "c" });
    say({ type: "error", re: "conversation", conversation: "c", error: refusal("conversation_unknown") });
    await expect(got).rejects.toMatchObject({ name: "TidewireError", code: "conversation_unknown", retryable: false });
    say({ type: "conversation", op: "list", conversations: [{ conversation: "c" }], next: 7 });
    expect(await listed).toEqual({ conversations: [{ conversation: "c" }], next: 7 });
  });

  test("wait for a connection, and are asked again when one broke before the answer", async () => {
    const deleted = subject.delete("c");
    expect(sockets).toEqual([]);
    online();
    expect(asked("conversation")).toHaveLength(1);
    reconnected();
    expect(asked("conversation")).toHaveLength(1);
    // It was done on the first connection.
    say({ type: "error", re: "conversation", conversation: "c", error: refusal("conversation_unknown") });
    expect(await deleted).toBeUndefined();
    reconnected();
    expect(asked("conversation")).toEqual([]);
  });

  test("a page that is refused for now comes later, and is asked for once on each connection", async () => {
    online();
    const page = subject.history("c", { before: "m4", branch: "m9" });
    expect(asked("history")).toEqual([{ type: "history", conversation: "c", limit: 50, before: "m4", branch: "m9" }]);
    say({ type: "error", re: "history", conversation: "c", error: refusal("store_unavailable", true) });
    clock.advance(1_000);
    expect(asked("history")).toHaveLength(2);
    reconnected();
    expect(asked("history")).toHaveLength(1);
    say({ type: "history", conversation: "c", messages: [] });
    expect(await page).toMatchObject({ messages: [] });
  });

  test("parts are put together", async () => {
    online();
    const part = subject.part("c", { ref: "r" });
    say({ type: "conversation", op: "part", conversation: "c", ref: "r", offset: 0, data: '{"a":', next: 5 });
    await settled();
    expect(asked("conversation").at(-1)).toMatchObject({ op: "part", ref: "r", offset: 5 });
    say({ type: "conversation", op: "part", conversation: "c", ref: "r", offset: 5, data: "1}" });
    expect(await part).toEqual({ a: 1 });
  });

  test("reject when nothing will come: the client is closed, or the connection refused", async () => {
    online();
    const waiting = subject.waiting("c");
    client.close();
    await expect(waiting).rejects.toMatchObject({ name: "ClientClosed" });
    await expect(subject.get("c")).rejects.toMatchObject({ name: "ClientClosed" });
    online();
    const title = subject.title("c");
    last().onclose?.({ code: 4401, reason: "" });
    await expect(title).rejects.toMatchObject({ name: "ConnectionFailed", closeCode: 4401 });
  });
});

describe("a conversation that is shown", () => {
  const question = { type: "message", conversation: "c", id: "q1", role: "user", content: "One?" };
  const answer = { type: "message", conversation: "c", id: "a1", role: "assistant", parent: "q1" };
  const page = { type: "history", conversation: "c", title: "Trip", current: null, queue: [] };

  const ids = (shown: Conversation): string[] => shown.entries.map((entry) => entry.id);

  async function opened(messages: object[], seq: number): Promise<Conversation> {
    online();
    const shown = subject.open("c", { limit: 3 });
    say({ ...page, messages, seq, next: "q0" });
    return shown.ready();
  }

  test("is loaded, then follows its log; an answer streams into it and stays", async () => {
    const shown = await opened([], 0);
    expect(last().sent.at(-1)).toEqual({ type: "subscribe", conversation: "c" });
    let told = 0;
    shown.on(() => told++);
    say({ type: "conversation", op: "queue", conversation: "c", seq: 1, current: "a1", queue: ["a2"] });
    say({ ...question, seq: 2 }, { ...answer, state: "running", seq: 3 });
    const attempt = { type: "attempt", id: "a1", seq: 1, attempt: 1, target: "t", model: "m", mode: "fresh" };
    say(attempt, { type: "delta", id: "a1", after: 1, seq: 2, text: "ab" });
    expect([shown.current, shown.queue]).toEqual(["a1", ["a2"]]);
    expect(shown.entries.map((entry) => [entry.role, shown.textOf(entry)])).toEqual([
      ["user", "One?"],
      ["assistant", "ab"],
    ]);
    say({ ...answer, state: "done", seq: 4 });
    const sha = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603";
    say({ type: "done", id: "a1", after: 2, seq: 3, text_bytes: 2, text_sha256: sha, usage: {} });
    client.forget("a1");
    expect(shown.entries.at(-1)).toMatchObject({ state: "done", content: "ab" });
    expect(told).toBeGreaterThan(5);
  });

  test("joins page and log: what was told while the page was on its way counts once", async () => {
    online();
    client.subscribe("c", 4);
    const shown = subject.open("c");
    say({ ...question, seq: 5 }, { ...answer, state: "running", seq: 6 });
    say({ ...page, messages: [{ id: "q1", role: "user", content: "One?" }], seq: 5 });
    await shown.ready();
    expect(ids(shown)).toEqual(["q1", "a1"]);
  });

  test("pages back", async () => {
    const shown = await opened([{ id: "q1", role: "user", content: "One?" }], 3);
    const older = shown.older();
    await settled();
    expect(asked("history").at(-1)).toMatchObject({ before: "q1", limit: 3 });
    say({ ...page, messages: [{ id: "q0", role: "user", content: "Zero?" }], seq: 3 });
    await older;
    expect([ids(shown), shown.hasOlder]).toEqual([["q0", "q1"], false]);
  });

  test.each([
    ["another answer to an earlier question", { ...answer, id: "a9", parent: "q0", state: "running", seq: 4 }],
    ["another branch is chosen", { type: "conversation", op: "chosen", conversation: "c", tip: "a9", seq: 4 }],
    ["an answer is rolled back", { type: "conversation", op: "removed", conversation: "c", entry: "q1", seq: 4 }],
    ["the log was lost", { type: "conversation", op: "reset", conversation: "c", seq: 2 }],
  ])("is read anew when %s", async (_, frame) => {
    const shown = await opened([{ id: "q1", role: "user", content: "One?" }], 3);
    say(frame);
    expect(asked("history")).toHaveLength(2);
    say({ ...page, messages: [{ id: "a9", role: "assistant", content: "New" }], seq: 4 });
    await shown.ready();
    expect(ids(shown)).toEqual(["a9"]);
  });

  test("asks, edits and regenerates where it should hang", async () => {
    const shown = await opened(
      [
        { id: "q1", role: "user", content: "One?" },
        { id: "a1", role: "assistant", content: "1", parent: "q1" },
      ],
      3,
    );
    shown.ask("Two?", { model: "fast", on_busy: "interrupt" });
    shown.regenerate("a1");
    shown.edit("q1", "Another one?");
    expect(asked("send")).toMatchObject([
      { conversation: "c", input: "Two?", model: "fast", on_busy: "interrupt" },
      { conversation: "c", parent: "q1" },
      { conversation: "c", parent: "c", input: "Another one?" },
    ]);
    expect(asked("send")[1]).not.toHaveProperty("input");
    expect(() => shown.regenerate("a7")).toThrow("no entry a7");
    expect(() => shown.regenerate("q1")).toThrow("answers nothing");
  });

  test("is empty before its first use, tells its title and pins, and goes when it is deleted", async () => {
    online();
    const shown = subject.open("c");
    say({ type: "error", re: "history", conversation: "c", error: refusal("conversation_unknown") });
    await shown.ready();
    say({ type: "conversation", op: "created", conversation: "c", seq: 1, title: "Trip" }, { ...question, seq: 2 });
    say({ type: "conversation", op: "pinned", conversation: "c", seq: 3, entry: "q1" });
    expect([shown.title, shown.entries[0]?.pinned]).toEqual(["Trip", true]);
    say({ type: "conversation", op: "deleted", conversation: "c" });
    expect([shown.state, shown.entries]).toEqual(["deleted", []]);
  });

  test("tells why it cannot be loaded, and is not followed once it is closed", async () => {
    online();
    const refused = subject.open("c");
    say({ type: "error", re: "history", conversation: "c", error: refusal("forbidden") });
    await expect(refused.ready()).rejects.toMatchObject({ code: "forbidden" });
    const shown = subject.open("d");
    say({ type: "history", conversation: "d", messages: [], seq: 0 });
    await shown.ready();
    shown.close();
    expect(last().sent.at(-1)).toEqual({ type: "unsubscribe", conversation: "d" });
    expect(client.session.subscribed("d")).toBeUndefined();
  });
});
