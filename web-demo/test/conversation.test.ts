/** What the page makes of pages and events of a conversation. */

import { describe, expect, test } from "vitest";
import { Chats } from "../src/page/chats.ts";
import { Conversation, textOf } from "../src/page/conversation.ts";

type Shown = Record<string, unknown>;

const user = (id: string, parent: string | null, content: unknown, more: Shown = {}): Shown => ({
  ...{ id, parent, role: "user", state: "done", content },
  ...more,
});
const answer = (id: string, parent: string, content: string, more: Shown = {}): Shown => ({
  ...{ id, parent, role: "assistant", state: "done", content },
  ...more,
});

function page(conversation: Conversation, messages: Shown[], more: Shown = {}): void {
  conversation.page({ type: "history", conversation: conversation.id, messages, seq: 9, tip: null, ...more });
}

function notice(conversation: Conversation, shown: Shown): void {
  conversation.notice({ type: "message", conversation: "c", ...shown } as never);
}

const simple = (): Conversation => {
  const conversation = new Conversation("c");
  page(conversation, [user("q1", null, "One?"), answer("m1", "q1", "1")], { tip: "m1", title: "Numbers" });
  return conversation;
};

const told = (conversation: Conversation): string[] =>
  conversation
    .turns([])
    .map(({ question, answer: given }) => `${question?.text} ${given?.text ?? given?.state ?? "-"}`);

describe("a conversation", () => {
  test("shows the chosen branch as turns", () => {
    const conversation = simple();
    expect(told(conversation)).toEqual(["One? 1"]);
    expect(conversation.title).toBe("Numbers");
    expect(conversation.older).toBeUndefined();
  });

  test("grows by what is told, and an end does not bring back what streamed", () => {
    const conversation = simple();
    notice(conversation, user("q2", "m1", "Two?", { seq: 10 }));
    notice(conversation, { id: "m2", parent: "q2", role: "assistant", state: "running", seq: 11 });
    expect(told(conversation)).toEqual(["One? 1", "Two? running"]);
    notice(conversation, { id: "m2", parent: "q2", role: "assistant", state: "done", target: "a", seq: 12 });
    const entry = conversation.entry("m2");
    expect([entry?.state, entry?.text, entry?.target]).toEqual(["done", undefined, "a"]);
  });

  test("is not set back by a page that was read earlier", () => {
    const conversation = simple();
    notice(conversation, user("q2", "m1", "Two?", { seq: 10 }));
    notice(conversation, answer("m2", "q2", "2", { seq: 12 }));
    page(conversation, [user("q2", "m1", "Two?"), { id: "m2", parent: "q2", role: "assistant", state: "running" }], {
      ...{ seq: 11, tip: "m2", current: "m2" },
    });
    expect(told(conversation)).toEqual(["One? 1", "Two? 2"]);
    expect(conversation.current).toBeUndefined();
  });

  test("a failed answer that runs again has no text until it has some", () => {
    const conversation = simple();
    page(conversation, [answer("m1", "q1", "half", { state: "failed" })], { tip: "m1" });
    notice(conversation, { id: "m1", parent: "q1", role: "assistant", state: "running", seq: 10 });
    expect(conversation.entry("m1")?.state).toBe("running");
    notice(conversation, { id: "m1", parent: "q1", role: "assistant", state: "done", seq: 11 });
    expect(conversation.entry("m1")?.text).toBeUndefined();
  });

  test("knows the versions at one place, in their order", () => {
    const conversation = simple();
    page(conversation, [answer("m2", "q1", "uno", { siblings: ["m1", "m2"] })], { tip: "m2", seq: 10 });
    notice(conversation, { id: "m3", parent: "q1", role: "assistant", state: "running", seq: 11 });
    const entry = conversation.entry("m2");
    expect(entry && conversation.siblings(entry)).toEqual(["m1", "m2", "m3"]);
    expect(conversation.event({ type: "conversation", op: "chosen", tip: "m1", seq: 12 })).toBe(false);
    expect(told(conversation)).toEqual(["One? 1"]);
    expect(conversation.event({ type: "conversation", op: "chosen", tip: "unknown", seq: 13 })).toBe(true);
  });

  test("an answer that is replaced is gone", () => {
    const conversation = simple();
    notice(conversation, { id: "m2", parent: "q1", role: "assistant", state: "running", seq: 10 });
    conversation.event({ type: "conversation", op: "removed", entry: "m2", tip: "q1", seq: 11 });
    expect(told(conversation)).toEqual(["One? -"]);
  });

  test("what waits stands at the end, in its order, whoever asked", () => {
    const conversation = simple();
    conversation.event({ type: "conversation", op: "queue", current: "m1", queue: ["far", "near"], seq: 10 });
    const pending = [
      { id: "near", text: "here?", parent: undefined, refused: false },
      { id: "sent", text: "last?", parent: undefined, refused: false },
    ];
    expect(conversation.strangers(pending)).toEqual(["far"]);
    conversation.waiting.set("far", "there?");
    const waiting = conversation.turns(pending).slice(1);
    expect(waiting.map(({ asked, position }) => [asked, position])).toEqual([
      ["there?", 1],
      ["here?", 2],
      ["last?", 0],
    ]);
  });

  test("another version stands in its place as soon as it is asked for", () => {
    const conversation = simple();
    const told = (text: string | undefined, parent: string, refused = false): (string | undefined)[] =>
      conversation
        .turns([{ id: "m2", text, parent, refused }])
        .map(({ id, question, asked }) => `${id} ${question?.text ?? asked}`);
    expect(told(undefined, "q1")).toEqual(["m2 One?"]);
    expect(told("Uno?", "c")).toEqual(["m2 Uno?"]);
    expect(told("Two?", "m1")).toEqual(["m1 One?", "m2 Two?"]);
    expect(told("Uno?", "c", true)).toEqual(["m1 One?", "m2 Uno?"]);
    conversation.event({ type: "conversation", op: "queue", current: "m9", queue: ["m2"], seq: 10 });
    expect(told(undefined, "q1")).toEqual(["m1 One?", "m2 One?"]);
  });

  test("asks for what lies before, and for large texts", () => {
    const conversation = new Conversation("c");
    const large = [{ type: "text", ref: "abc", bytes: 50_000, whole: true }];
    page(conversation, [user("q2", "m1", large), answer("m2", "q2", "2")], { tip: "m2" });
    expect(conversation.older).toBe("q2");
    expect(conversation.missing()).toEqual(["abc"]);
    conversation.fetched("abc", '{"type":"text","text":"long"}');
    expect(conversation.missing()).toEqual([]);
    const question = conversation.entry("q2");
    expect(question && conversation.textOf(question)).toBe("long");
    page(conversation, [user("q1", null, "One?"), answer("m1", "q1", "1")], { tip: "m2" });
    expect(conversation.older).toBeUndefined();
    expect(conversation.turns([])).toHaveLength(2);
  });

  test("reads every form of an input", () => {
    expect(textOf("a")).toBe("a");
    expect(
      textOf([
        { type: "text", text: "a" },
        { type: "image_url", image_url: {} },
      ]),
    ).toBe("a");
    expect(textOf([{ role: "user", content: [{ type: "text", text: "a" }] }])).toBe("a");
    expect(textOf(null)).toBe("");
  });
});

describe("the list", () => {
  const listed = (...entries: [string, number][]) =>
    entries.map(([conversation, updated]) => ({ conversation, updated, title: `Title ${conversation}`, queue: [] }));

  test("is refreshed at its top without losing what lies below", () => {
    const chats = new Chats();
    chats.listed(listed(["c", 3], ["b", 2]), 2, undefined);
    chats.listed(listed(["a", 1]), undefined, 2);
    expect(chats.shown().map(({ id }) => id)).toEqual(["c", "b", "a"]);
    chats.listed(listed(["b", 5], ["d", 4]), 4, undefined); // `c` was deleted elsewhere, or is further down now
    expect(chats.shown().map(({ id }) => id)).toEqual(["b", "d", "c", "a"]);
    chats.listed(listed(["b", 5], ["d", 4], ["a", 1]), undefined, undefined);
    expect(chats.shown().map(({ id }) => id)).toEqual(["b", "d", "a"]);
  });

  test("has what was asked here before the server lists it, and not what was deleted", () => {
    const chats = new Chats();
    chats.seen({ id: "n", title: "New", updated: 9, busy: true });
    chats.listed(listed(["a", 1]), undefined, undefined);
    expect(chats.shown().map(({ id }) => id)).toEqual(["n", "a"]);
    chats.remove("a");
    chats.listed(listed(["a", 1], ["n", 10]), undefined, undefined);
    expect(chats.shown().map(({ title }) => title)).toEqual(["Title n"]);
    expect(chats.shown("TITLE N")).toHaveLength(1);
    expect(chats.shown("x")).toEqual([]);
  });
});
