/** The shell: when it connects, resumes, worries and gives up. The clock and the network are passed in. */

import { beforeEach, describe, expect, test, vi } from "vitest";
import { ClientClosed, ConnectionFailed, MessageFailed, MessageRefused } from "../src/client/errors.ts";
import { Client, type ClientOptions } from "../src/client/socket.ts";
import type { ErrorBody, ServerFrame } from "../src/client/types.ts";
import { FakeClock, FakePage, FakeSocket, FakeStorage } from "./fakes.ts";

let clock: FakeClock;
let sockets: FakeSocket[];
let page: FakePage;
let storage: FakeStorage;

function client(options: Partial<ClientOptions> = {}): Client {
  return new Client({
    url: "ws://test",
    clock,
    random: () => 0.5,
    storage,
    window: page,
    document: page,
    connect: () => {
      sockets.push(new FakeSocket());
      return last();
    },
    ...options,
  });
}

function last(): FakeSocket {
  return sockets.at(-1) as FakeSocket;
}

const question = { id: "m", messages: [{ role: "user" as const, content: "?" }] };

beforeEach(() => {
  clock = new FakeClock();
  sockets = [];
  page = new FakePage();
  storage = new FakeStorage();
});

describe("connecting", () => {
  test("hello is first and nothing is sent before welcome", () => {
    const subject = client({ token: "t" });
    subject.start();
    subject.send(question);
    last().open();
    expect(last().sent).toEqual([{ type: "hello", client: subject.session.client, token: "t" }]);
    last().welcome();
    expect(last().types()).toContain("send");
  });

  test("a connection that never comes to welcome is given up", () => {
    client().start();
    last().open();
    clock.advance(10_000);
    expect(last().closed).toBe(true);
    clock.advance(125);
    expect(sockets).toHaveLength(2);
  });

  test("a question asked offline goes out once connected, with the same id", () => {
    const subject = client();
    subject.send(question);
    subject.start();
    last().onclose?.({ code: 1006, reason: "" });
    clock.advance(1000);
    last().welcome();
    expect(last().sent.filter((frame) => frame.type === "send")).toMatchObject([{ id: "m" }]);
  });
});

describe("losing the connection", () => {
  test("waits longer each time, and resumes what was open in hello", () => {
    const subject = client();
    subject.start();
    last().welcome();
    subject.send(question);
    last().say(
      { type: "accepted", id: "m", replay: false, state: "streaming", seq: 0 },
      { type: "attempt", id: "m", seq: 1, attempt: 1, target: "a", model: "a", mode: "fresh" },
      { type: "delta", id: "m", after: 1, seq: 2, text: "Half" },
    );
    last().onclose?.({ code: 1006, reason: "" });
    expect(subject.status.retryAt).toBe(clock.now() + 125);
    clock.advance(125);
    last().onclose?.({ code: 1006, reason: "" });
    expect(subject.status.retryAt).toBe(clock.now() + 250);
    clock.advance(250);
    last().open();
    expect(last().sent[0]).toMatchObject({ type: "hello", resume: [{ id: "m", after: 2 }] });
  });

  test.each([4401, 4403, 4429])("close code %i stops it", (code) => {
    const subject = client();
    subject.start();
    last().onclose?.({ code, reason: "" });
    clock.advance(120_000);
    expect(sockets).toHaveLength(1);
    expect(subject.status).toMatchObject({ phase: "stopped", closeCode: code });
  });

  test("a new token is tried at once", () => {
    const subject = client();
    subject.start();
    last().onclose?.({ code: 4401, reason: "" });
    subject.setToken("t");
    last().open();
    expect(last().sent[0]).toMatchObject({ type: "hello", token: "t" });
  });

  test("goaway reconnects after the server's delay", () => {
    client().start();
    last().welcome();
    last().say({ type: "goaway", reason: "deploy", reconnect_after_ms: 700 });
    clock.advance(699);
    expect(sockets).toHaveLength(1);
    clock.advance(1);
    expect(sockets).toHaveLength(2);
    expect(sockets[0]?.closed).toBe(true);
  });

  test("cut says nothing, and comes back after the given time", () => {
    const subject = client();
    subject.start();
    last().welcome();
    subject.cut(2500);
    expect(sockets[0]?.closed).toBe(true);
    clock.advance(2499);
    expect(sockets).toHaveLength(1);
    clock.advance(1);
    expect(sockets).toHaveLength(2);
  });

  test("what is not the protocol is not listened to", () => {
    const subject = client();
    subject.start();
    last().welcome();
    last().onmessage?.({ data: "<html>" });
    expect(sockets[0]?.closed).toBe(true);
    expect(subject.status.phase).toBe("waiting");
  });
});

describe("heartbeat", () => {
  test("measures the round trip", () => {
    const subject = client();
    subject.start();
    last().welcome();
    clock.advance(30);
    last().pong();
    expect(subject.status.roundTripMs).toBe(30);
  });

  test("two unanswered in a row mean the connection is dead", () => {
    client().start();
    last().welcome();
    clock.advance(20_000);
    expect(last().closed).toBe(false);
    clock.advance(20_000);
    expect(sockets[0]?.closed).toBe(true);
  });

  test("an answered one means it lives", () => {
    client().start();
    last().welcome();
    for (let beat = 0; beat < 5; beat++) {
      last().pong();
      clock.advance(20_000);
    }
    expect(sockets).toHaveLength(1);
  });
});

describe("waking up", () => {
  test("connects at once instead of waiting out the backoff", () => {
    const subject = client();
    subject.start();
    last().onclose?.({ code: 1006, reason: "" });
    page.fire("online");
    expect(sockets).toHaveLength(2);
    expect(subject.status.phase).toBe("connecting");
  });

  test("finds a half-open connection in seconds", () => {
    client().start();
    last().welcome();
    last().pong();
    page.fire("visibilitychange");
    clock.advance(3_000);
    expect(sockets[0]?.closed).toBe(true);
  });
});

describe("without a network", () => {
  const fail = (): void => last().onclose?.({ code: 1006, reason: "" });

  test("the connection is given up at once, and tried again as soon as there is one", () => {
    const subject = client();
    subject.start();
    last().welcome();
    subject.send(question);
    page.fire("offline");
    expect(sockets[0]?.closed).toBe(true);
    expect(subject.status.phase).toBe("connecting");
    fail();
    expect(subject.status.phase).toBe("waiting");
    page.fire("online");
    expect(sockets).toHaveLength(3);
    last().welcome([{ id: "m", state: "streaming", seq: 0 }]);
    expect(subject.status.phase).toBe("open");
  });

  test("tries are rare, and count for no backoff", () => {
    const subject = client();
    subject.start();
    last().welcome();
    page.fire("offline");
    fail();
    for (let tries = 2; tries < 12; tries++) {
      clock.advance(29_999);
      expect(sockets).toHaveLength(tries);
      clock.advance(1);
      fail();
    }
    page.fire("online");
    expect(sockets).toHaveLength(13);
    fail();
    expect(subject.status.retryAt).toBe(clock.now() + 125); // half of the first wait
  });

  test("a try that hangs is not waited for once there is one", () => {
    client().start();
    page.fire("offline");
    const hanging = last();
    page.fire("online");
    expect(hanging.closed).toBe(true);
    expect(sockets).toHaveLength(3);
  });

  test("a server that is reached all the same is used as ever", () => {
    const subject = client();
    subject.start();
    page.fire("offline");
    last().welcome();
    expect(subject.status.phase).toBe("open");
    page.fire("online");
    last().pong();
    clock.advance(3_000);
    expect(sockets).toHaveLength(2);
    expect(subject.status.phase).toBe("open");
  });

  test("a client that was closed, or refused, stays away", () => {
    const subject = client();
    subject.start();
    last().onclose?.({ code: 4401, reason: "" });
    page.fire("offline");
    page.fire("online");
    expect(subject.status.phase).toBe("stopped");
    subject.close();
    page.fire("offline");
    expect(sockets).toHaveLength(1);
  });
});

describe("a reload", () => {
  test("in mid-answer goes on from the stored cursor", () => {
    const before = client();
    before.start();
    last().welcome();
    before.send(question);
    last().say(
      { type: "attempt", id: "m", seq: 1, attempt: 1, target: "a", model: "a", mode: "fresh" },
      { type: "delta", id: "m", after: 1, seq: 2, text: "Half" },
    );
    page.fire("pagehide");

    const after = client();
    expect(after.session.messages.get("m")?.text).toBe("Half");
    after.start();
    last().open();
    expect(last().sent[0]).toMatchObject({ resume: [{ id: "m", after: 2 }] });
  });

  test("after the end finds nothing to resume", () => {
    const before = client();
    before.start();
    last().welcome();
    before.send(question);
    last().say({
      ...{ type: "error", re: "send", id: "m" },
      error: { code: "quota_exceeded", class: "temporary", status: 429, message: "", retryable: true },
    } as ServerFrame);
    expect(storage.data.size).toBe(0);
  });
});

test("an abort signal cancels, also after a reconnect", () => {
  const subject = client();
  const controller = new AbortController();
  subject.start();
  last().welcome();
  subject.send(question, { signal: controller.signal });
  last().say({ type: "accepted", id: "m", replay: false, state: "streaming", seq: 0 });
  last().onclose?.({ code: 1006, reason: "" });
  controller.abort();
  clock.advance(1000);
  last().welcome([{ id: "m", state: "streaming", seq: 1 }]);
  expect(last().sent).toContainEqual({ type: "cancel", id: "m" });
});

const refusal: ErrorBody = {
  code: "quota_exceeded",
  class: "temporary",
  status: 429,
  message: "wait",
  retryable: true,
};
const hashOfAb = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603";
const attempt = { type: "attempt", id: "m", seq: 1, attempt: 1, target: "a", model: "a", mode: "fresh" } as const;

function done(seq: number): ServerFrame {
  const end = { finish_reason: "stop", usage: {}, model: "a", target: "a", attempts: 1 };
  return { type: "done", id: "m", seq, text_bytes: 2, text_sha256: hashOfAb, ...end };
}

describe("tokens", () => {
  test("a source is asked before every connection", async () => {
    let number = 0;
    client({ token: async () => `t${++number}` }).start();
    await vi.waitFor(() => expect(sockets).toHaveLength(1));
    last().open();
    expect(last().sent[0]).toMatchObject({ token: "t1" });
    last().onclose?.({ code: 1006, reason: "" });
    clock.advance(1_000);
    await vi.waitFor(() => expect(sockets).toHaveLength(2));
    last().open();
    expect(last().sent[0]).toMatchObject({ token: "t2" });
  });

  test("are renewed on the open connection before they expire, again and again", async () => {
    let number = 0;
    client({ token: () => `t${++number}` }).start();
    await vi.waitFor(() => expect(sockets).toHaveLength(1));
    last().welcome([], { expires_in_seconds: 10, heartbeat_seconds: 3_600 });
    clock.advance(7_999);
    expect(last().types()).not.toContain("auth");
    clock.advance(1);
    await vi.waitFor(() => expect(last().sent).toContainEqual({ type: "auth", token: "t2" }));
    await vi.waitFor(() => {
      clock.advance(8_000);
      expect(last().sent).toContainEqual({ type: "auth", token: "t3" });
    });
    expect(sockets).toHaveLength(1);
  });

  test("one that expired on the way is replaced once, then it is a failure", async () => {
    const subject = client({ token: () => "stale" });
    subject.start();
    await vi.waitFor(() => expect(sockets).toHaveLength(1));
    last().onclose?.({ code: 4401, reason: "" });
    await vi.waitFor(() => expect(sockets).toHaveLength(2));
    last().onclose?.({ code: 4401, reason: "" });
    expect(subject.status).toMatchObject({ phase: "stopped", closeCode: 4401 });
  });

  test("a source that fails is asked again after the backoff", async () => {
    let asked = 0;
    const subject = client({
      token: async () => {
        if (++asked === 1) throw new Error("offline");
        return "t";
      },
    });
    subject.start();
    await vi.waitFor(() => expect(subject.status.phase).toBe("waiting"));
    expect(subject.lastError).toMatchObject({ code: "token_unavailable", retryable: true });
    clock.advance(1_000);
    await vi.waitFor(() => expect(sockets).toHaveLength(1));
  });
});

describe("an awaited answer", () => {
  test("is told in pieces, each once, across a reconnect, and checked at the end", async () => {
    const subject = client();
    subject.start();
    last().welcome();
    const answer = subject.ask(question);
    last().say({ type: "accepted", id: "m", replay: false, state: "streaming", seq: 0 }, attempt);
    last().say({ type: "delta", id: "m", after: 1, seq: 2, text: "a" });
    const pieces: string[] = [];
    for await (const piece of answer) {
      pieces.push(piece.text);
      if (pieces.length > 1) continue;
      last().onclose?.({ code: 1006, reason: "" });
      clock.advance(1_000);
      last().welcome([{ id: "m", state: "streaming", seq: 2 }]);
      last().say({ type: "delta", id: "m", after: 2, seq: 3, text: "b" }, done(4));
    }
    expect(pieces).toEqual(["a", "b"]);
    expect((await answer.done()).text).toBe("ab");
  });

  test("says what to forget when another attempt starts over", async () => {
    const subject = client();
    subject.start();
    last().welcome();
    const answer = subject.ask(question);
    last().say(attempt, { type: "delta", id: "m", after: 1, seq: 2, text: "wrong" });
    const pieces: unknown[] = [];
    for await (const piece of answer) {
      pieces.push(piece);
      if (pieces.length > 1) continue;
      last().say({ ...attempt, after: 2, seq: 3, attempt: 2, mode: "restart" });
      last().say({ type: "delta", id: "m", after: 3, seq: 4, text: "ab" }, done(5));
    }
    expect(pieces).toEqual([
      { text: "wrong", reasoning: "", replaces: false },
      { text: "ab", reasoning: "", replaces: true },
    ]);
  });

  test("rejects with what the server said", async () => {
    const subject = client();
    subject.start();
    last().welcome();
    const answer = subject.ask(question);
    last().say({ type: "error", re: "send", id: "m", error: { ...refusal, retry_after_ms: 900 } });
    const failure = await answer.accepted().catch((error) => error);
    expect(failure).toBeInstanceOf(MessageRefused);
    expect(failure).toMatchObject({ code: "quota_exceeded", retryable: true, retryAfterMs: 900, message: "wait" });
  });

  test("throws after the pieces of a message that failed", async () => {
    const subject = client();
    subject.start();
    last().welcome();
    const answer = subject.ask(question);
    last().say(attempt, { type: "delta", id: "m", after: 1, seq: 2, text: "a" });
    last().say({ type: "failed", id: "m", seq: 3, error: refusal, usage: {}, partial: true });
    const pieces: string[] = [];
    const read = async (): Promise<void> => {
      for await (const piece of answer) pieces.push(piece.text);
    };
    await expect(read()).rejects.toBeInstanceOf(MessageFailed);
    expect(pieces).toEqual(["a"]);
  });

  test("ends with the connection that is refused, and with the client", async () => {
    const refused = client();
    refused.start();
    const first = refused.ask(question).done();
    last().open();
    last().say({ type: "error", re: "hello", error: { ...refusal, code: "unauthenticated", retryable: false } });
    last().onclose?.({ code: 4401, reason: "" });
    await expect(first).rejects.toBeInstanceOf(ConnectionFailed);
    await expect(first).rejects.toMatchObject({ code: "unauthenticated", closeCode: 4401 });
    const closed = client({ storageKey: "other" });
    closed.start();
    const second = closed.ask(question).done();
    closed.close();
    await expect(second).rejects.toBeInstanceOf(ClientClosed);
  });
});

describe("an abort signal", () => {
  test("that was given to a follower of a resumed message cancels it", () => {
    const subject = client();
    const controller = new AbortController();
    subject.start();
    last().welcome();
    subject.attach("m", { signal: controller.signal });
    last().say({ type: "accepted", id: "m", replay: true, state: "streaming", seq: 9 });
    controller.abort();
    expect(last().sent.at(-1)).toEqual({ type: "cancel", id: "m" });
  });

  test("that is aborted already sends nothing", () => {
    const subject = client();
    subject.start();
    last().welcome();
    const message = subject.send(question, { signal: AbortSignal.abort() });
    expect(message.state).toBe("cancelled");
    expect(last().types()).not.toContain("send");
  });

  test("is let go of at the end", () => {
    const subject = client();
    const controller = new AbortController();
    const removed = vi.spyOn(controller.signal, "removeEventListener");
    subject.start();
    last().welcome();
    subject.send(question, { signal: controller.signal });
    last().say({ type: "error", re: "send", id: "m", error: refusal });
    expect(removed).toHaveBeenCalledOnce();
  });
});

test("what is larger than a frame is refused here, and what is not goes out", () => {
  const subject = client();
  subject.start();
  last().welcome([], { max_frame_bytes: 600 });
  last().pong();
  const large = subject.send({ id: "large", messages: [{ role: "user", content: "é".repeat(300) }] });
  expect(large).toMatchObject({ state: "refused", error: { code: "invalid_frame" } });
  expect(last().closed).toBe(false);
  last().onclose?.({ code: 1006, reason: "" });
  for (let i = 0; i < 5; i++) subject.send({ id: `m${i}`, messages: [{ role: "user", content: "x".repeat(200) }] });
  clock.advance(1_000);
  last().welcome([], { max_frame_bytes: 600 });
  expect(
    last()
      .types()
      .filter((type) => type === "send"),
  ).toHaveLength(5);
});

test("a platform without WebSocket is told what to give", () => {
  vi.stubGlobal("WebSocket", undefined);
  const subject = new Client({ url: "ws://test", clock });
  expect(() => subject.start()).toThrow("new Client({ WebSocket })");
  vi.unstubAllGlobals();
});

test("the WebSocket that is given is used", () => {
  const opened: string[] = [];
  class Given extends FakeSocket {
    constructor(url: string, subprotocol: string) {
      super();
      opened.push(`${url} ${subprotocol}`);
    }
  }
  new Client({ url: "ws://test", clock, WebSocket: Given }).start();
  expect(opened).toEqual(["ws://test tidewire.v1.json"]);
});

describe("conversations", () => {
  const notice = { type: "message", conversation: "c", id: "e1", role: "user" } as const;

  test("are subscribed to again from the last event that was told, and none is told twice", () => {
    const subject = client();
    const told: number[] = [];
    subject.on((event) => event.type === "notice" && told.push(event.frame.seq ?? 0));
    subject.start();
    last().welcome();
    subject.subscribe("c", 4);
    expect(last().sent.at(-1)).toEqual({ type: "subscribe", conversation: "c", after: 4 });
    last().say({ ...notice, seq: 5 }, { type: "conversation", op: "queue", conversation: "c", seq: 6, queue: [] });
    last().onclose?.({ code: 1006, reason: "" });
    clock.advance(1_000);
    last().welcome();
    expect(last().sent).toContainEqual({ type: "subscribe", conversation: "c", after: 6 });
    last().say({ ...notice, seq: 5 }, { ...notice, seq: 7 });
    expect(told).toEqual([5, 7]);
  });

  test("are followed by a reloaded page from the last event that was told, until it leaves them", () => {
    const before = client();
    before.start();
    last().welcome();
    before.subscribe("c", 4);
    last().say({ ...notice, seq: 5 });
    page.fire("pagehide");
    before.close();

    const after = client();
    expect(after.session.subscribed("c")).toBe(5);
    after.start();
    last().welcome();
    expect(last().sent).toContainEqual({ type: "subscribe", conversation: "c", after: 5 });
    after.unsubscribe("c");
    expect(client().session.subscribed("c")).toBeUndefined();
    expect(storage.data.size).toBe(0);
  });

  test.each(["", "{", "7", "null", "[1]", '[{"id":7}]', '{"c":"x"}'])(
    "are not harmed by a damaged storage: %s",
    (text) => {
      for (const key of ["tidewire.open", "tidewire.open.conversations"]) storage.setItem(key, text);
      const subject = client();
      expect([...subject.session.messages.keys()]).toEqual([]);
      expect(subject.session.subscribed("c")).toBeUndefined();
    },
  );

  test("are paged; a page that did not come is asked for again", () => {
    const subject = client();
    subject.start();
    last().welcome();
    subject.history("c", { before: "e9", limit: 10 });
    const page = { type: "history", conversation: "c", before: "e9", limit: 10 };
    expect(last().sent.at(-1)).toEqual(page);
    last().onclose?.({ code: 1006, reason: "" });
    clock.advance(1_000);
    last().welcome();
    expect(last().sent).toContainEqual(page);
    last().say({ type: "history", conversation: "c", messages: [] });
    last().onclose?.({ code: 1006, reason: "" });
    clock.advance(1_000);
    last().welcome();
    expect(last().sent).not.toContainEqual(page);
  });

  test("can be made, listed and named", () => {
    const subject = client();
    subject.start();
    last().welcome();
    subject.conversation({ op: "create", conversation: "c", title: "Trip" });
    expect(last().sent.at(-1)).toEqual({ type: "conversation", op: "create", conversation: "c", title: "Trip" });
  });
});
