/** The shell: when it connects, resumes, worries and gives up. The clock and the network are passed in. */

import { beforeEach, describe, expect, test } from "vitest";
import type { ClientFrame, ServerFrame } from "../src/client/frames.ts";
import { Client, type Clock, type WebSocketLike } from "../src/client/socket.ts";

class FakeClock implements Clock {
  time = 1_000_000;
  private timers = new Map<number, { at: number; callback: () => void }>();
  private next = 1;

  now(): number {
    return this.time;
  }

  setTimeout(callback: () => void, milliseconds: number): number {
    this.timers.set(this.next, { at: this.time + milliseconds, callback });
    return this.next++;
  }

  clearTimeout(timer: number): void {
    this.timers.delete(timer);
  }

  advance(milliseconds: number): void {
    const end = this.time + milliseconds;
    for (;;) {
      const due = [...this.timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = due[1].at;
      due[1].callback();
    }
    this.time = end;
  }
}

class FakeSocket implements WebSocketLike {
  binaryType = "";
  readonly protocol = "tidewire.v1.json";
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  sent: ClientFrame[] = [];
  closed = false;

  send(data: string): void {
    const value = JSON.parse(data);
    this.sent.push(...(Array.isArray(value) ? value : [value]));
  }

  close(): void {
    this.closed = true;
  }

  open(): void {
    this.onopen?.(undefined as never);
  }

  say(...frames: ServerFrame[]): void {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  welcome(resumed: { id: string; state: string; seq: number }[] = []): void {
    this.open();
    this.say({
      ...{ type: "welcome", session: "s", user: "u", tier: "free", heartbeat_seconds: 20, max_frame_bytes: 1 << 20 },
      ...{ resumed, active: [], server_time: 0 },
    } as ServerFrame);
  }

  pong(): void {
    const ping = this.sent.findLast((frame) => frame.type === "ping");
    this.say({ type: "pong", nonce: ping?.type === "ping" ? ping.nonce : 0, open: [] });
  }

  types(): string[] {
    return this.sent.map((frame) => frame.type);
  }
}

class FakePage {
  visibilityState = "visible";
  private listeners = new Map<string, () => void>();

  addEventListener(type: string, listener: () => void): void {
    this.listeners.set(type, listener);
  }

  removeEventListener(type: string): void {
    this.listeners.delete(type);
  }

  fire(type: string): void {
    this.listeners.get(type)?.();
  }
}

class FakeStorage {
  readonly data = new Map<string, string>();
  getItem = (key: string): string | null => this.data.get(key) ?? null;
  setItem = (key: string, value: string): void => void this.data.set(key, value);
  removeItem = (key: string): void => void this.data.delete(key);
}

let clock: FakeClock;
let sockets: FakeSocket[];
let page: FakePage;
let storage: FakeStorage;

function client(options: { token?: string } = {}): Client {
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
