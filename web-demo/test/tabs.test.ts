/** One connection for several tabs. A tab here is a client with its own end of a bus; killing one frees its lock. */

import { beforeEach, describe, expect, test, vi } from "vitest";
import { Client, type ClientOptions, type WebSocketLike } from "../src/client/socket.ts";
import { ANSWER_MS, type Channel, type Locks, sharedTabs } from "../src/client/tabs.ts";
import type { ClientFrame, ServerFrame } from "../src/client/types.ts";

class Upstream implements WebSocketLike {
  binaryType = "";
  readonly protocol = "tidewire.v1.json";
  onopen: WebSocketLike["onopen"] = null;
  onmessage: WebSocketLike["onmessage"] = null;
  onclose: WebSocketLike["onclose"] = null;
  onerror: WebSocketLike["onerror"] = null;
  sent: ClientFrame[] = [];

  send(data: string): void {
    this.sent.push(...[JSON.parse(data)].flat());
  }

  close(): void {}

  say(...frames: object[]): void {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  welcome(resumed: object[] = []): void {
    this.onopen?.(undefined as never);
    const fields = { session: "s", user: "u", tier: "free", heartbeat_seconds: 20, max_frame_bytes: 1 << 20 };
    this.say({ type: "welcome", ...fields, resumed, active: [], server_time: 0 });
  }

  of(type: string): ClientFrame[] {
    return this.sent.filter((frame) => frame.type === type);
  }
}

/** What the tabs of one browser share. */
class Browser {
  readonly upstreams: Upstream[] = [];
  private readonly ends = new Set<End>();
  private readonly queue: { name: string; tab: Tab; held: () => Promise<void>; robbed: (error: Error) => void }[] = [];
  private readonly holders = new Map<string, { tab: Tab; robbed: (error: Error) => void }>();

  get upstream(): Upstream {
    return this.upstreams.at(-1) as Upstream;
  }

  tab(options: Partial<ClientOptions> = {}, account = "u"): Tab {
    return new Tab(this, options, account);
  }

  locksOf(tab: Tab): Locks {
    return {
      request: (name, { steal, signal }, held) =>
        new Promise((_, robbed) => {
          const asked = { name, tab, held, robbed };
          signal?.addEventListener("abort", () => {
            this.queue.splice(this.queue.indexOf(asked), 1);
            robbed(new DOMException("not wanted any more", "AbortError"));
          });
          if (steal) {
            this.holders.get(name)?.robbed(new DOMException("stolen", "AbortError"));
            this.holders.delete(name);
            this.queue.unshift(asked);
          } else {
            this.queue.push(asked);
          }
          this.grant(name);
        }),
    };
  }

  /** The tab is gone: nothing of it is heard, and its locks pass on. */
  kill(tab: Tab): void {
    tab.alive = false;
    for (const end of [...this.ends]) if (end.tab === tab) this.ends.delete(end);
    for (const [name, holder] of [...this.holders]) {
      if (holder.tab !== tab) continue;
      this.holders.delete(name);
      this.grant(name);
    }
  }

  private grant(name: string): void {
    if (this.holders.has(name)) return;
    const next = this.queue.find((waiting) => waiting.name === name && waiting.tab.alive);
    if (!next) return;
    this.queue.splice(this.queue.indexOf(next), 1);
    this.holders.set(name, next);
    void next.held();
  }

  join(end: End): void {
    this.ends.add(end);
  }

  leave(end: End): void {
    this.ends.delete(end);
  }

  post(from: End, note: unknown): void {
    if (!from.tab.alive || from.tab.asleep) return;
    for (const end of [...this.ends]) {
      if (end !== from && end.name === from.name) {
        queueMicrotask(
          () =>
            this.ends.has(end) && !end.tab.asleep && end.onmessage?.({ data: structuredClone(note) } as MessageEvent),
        );
      }
    }
  }
}

class End implements Channel {
  onmessage: Channel["onmessage"] = null;
  readonly tab: Tab;
  readonly name: string;

  constructor(tab: Tab, name: string) {
    this.tab = tab;
    this.name = name;
    tab.browser.join(this);
  }

  private closed = false;

  postMessage(note: unknown): void {
    if (this.closed) throw new Error("InvalidStateError: Channel is closed");
    this.tab.browser.post(this, note);
  }

  close(): void {
    this.closed = true;
    this.tab.browser.leave(this);
  }
}

class Tab {
  alive = true;
  /** Its locks are held, but it hears and says nothing. */
  asleep = false;
  readonly browser: Browser;
  readonly client: Client;

  constructor(browser: Browser, options: Partial<ClientOptions>, account: string) {
    this.browser = browser;
    const connect = (): WebSocketLike => {
      browser.upstreams.push(new Upstream());
      return browser.upstream;
    };
    const [locks, channel] = [browser.locksOf(this), (name: string) => new End(this, name)];
    const shared = sharedTabs({ account, locks, channel, client: { connect, random: () => 0 } });
    this.client = new Client({ url: "ws://test", connect: shared, random: () => 0, ...options });
    this.client.start();
  }

  ask(id: string): ReturnType<Client["send"]> {
    return this.client.send({ id, messages: [{ role: "user", content: id }] });
  }
}

let browser: Browser;

beforeEach(() => {
  browser = new Browser();
});

async function greeted(...tabs: Tab[]): Promise<void> {
  for (const tab of tabs) await vi.waitFor(() => expect(tab.client.status.phase).toBe("open"));
}

async function twoTabs(): Promise<[Tab, Tab]> {
  const tabs: [Tab, Tab] = [browser.tab(), browser.tab()];
  await vi.waitFor(() => expect(browser.upstreams).toHaveLength(1));
  browser.upstream.welcome();
  await greeted(...tabs);
  return tabs;
}

const HASH_OF_AB = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603";

function start(id: string): ServerFrame[] {
  return [
    { type: "accepted", id, replay: false, state: "streaming", seq: 0 },
    { type: "attempt", id, seq: 1, after: 0, attempt: 1, target: "a", model: "a", mode: "fresh" },
    { type: "delta", id, after: 1, seq: 2, text: "a" },
  ];
}

function finish(id: string): ServerFrame[] {
  const end = { finish_reason: "stop", usage: {}, model: "a", target: "a", attempts: 1 };
  return [
    { type: "delta", id, after: 2, seq: 3, text: "b" },
    { type: "done", id, after: 3, seq: 4, text_bytes: 2, text_sha256: HASH_OF_AB, ...end },
  ];
}

describe("two tabs", () => {
  test("share one connection; each is told of its own messages only", async () => {
    const [one, two] = await twoTabs();
    const [first, second] = [one.ask("m1"), two.ask("m2")];
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(2));
    browser.upstream.say(...start("m1"), ...start("m2"), ...finish("m2"), ...finish("m1"));
    await vi.waitFor(() => expect([first.state, second.state]).toEqual(["done", "done"]));
    expect([first.text, second.text]).toEqual(["ab", "ab"]);
    expect([...one.client.session.messages.keys(), ...two.client.session.messages.keys()]).toEqual(["m1", "m2"]);
    expect(browser.upstreams).toHaveLength(1);
    expect(browser.upstream.of("hello")).toHaveLength(1);
  });

  test("follow one message, the later one from what stands; a repeat generates nothing", async () => {
    const [one, two] = await twoTabs();
    const first = one.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    await vi.waitFor(() => expect(first.text).toBe("a"));
    const second = two.ask("m1");
    await vi.waitFor(() => expect(second.text).toBe("a"));
    browser.upstream.say(...finish("m1"));
    await vi.waitFor(() => expect([first.state, second.state]).toEqual(["done", "done"]));
    expect(browser.upstream.of("send")).toHaveLength(1);
    expect([first.resyncs, second.resyncs]).toEqual([0, 0]);
    const late = browser.tab();
    await greeted(late);
    const third = late.client.follow("m1");
    await vi.waitFor(() => expect([third.state, third.text]).toEqual(["done", "ab"]));
  });

  test("stop each other's messages", async () => {
    const [one, two] = await twoTabs();
    const first = one.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    const second = two.client.follow("m1");
    await vi.waitFor(() => expect(second.text).toBe("a"));
    two.client.cancel("m1");
    await vi.waitFor(() => expect(browser.upstream.of("cancel")).toHaveLength(1));
    const hash = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
    browser.upstream.say({
      type: "cancelled",
      id: "m1",
      after: 2,
      seq: 3,
      text_bytes: 1,
      text_sha256: hash,
      usage: {},
    });
    await vi.waitFor(() => expect([first.state, second.state]).toEqual(["cancelled", "cancelled"]));
  });

  test("a message that nobody follows any more is let go of, not stopped", async () => {
    const [one] = await twoTabs();
    one.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    one.client.close();
    await vi.waitFor(() => expect(browser.upstream.of("detach")).toHaveLength(1));
    expect(browser.upstream.of("cancel")).toHaveLength(0);
  });

  test("a refusal reaches who asked", async () => {
    const [, two] = await twoTabs();
    const message = two.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    const error = { code: "quota_exceeded", class: "temporary", status: 429, message: "", retryable: true };
    browser.upstream.say({ type: "error", re: "send", id: "m1", error });
    await vi.waitFor(() => expect(message.state).toBe("refused"));
    expect(two.client.retry("m1")).toBe(true);
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(2));
  });

  test("a page of a conversation goes to who asked for it, an event to all who subscribed", async () => {
    const [one, two] = await twoTabs();
    const told: string[] = [];
    one.client.on(({ type }) => ["history", "notice"].includes(type) && told.push(`one ${type}`));
    two.client.on(({ type }) => ["history", "notice"].includes(type) && told.push(`two ${type}`));
    one.client.subscribe("c");
    two.client.subscribe("c");
    two.client.history("c");
    await vi.waitFor(() => expect(browser.upstream.of("history")).toHaveLength(1));
    browser.upstream.say({ type: "history", conversation: "c", messages: [] });
    browser.upstream.say({ type: "message", conversation: "c", id: "e1", role: "user", seq: 1 });
    await vi.waitFor(() => expect(told.sort()).toEqual(["one notice", "two history", "two notice"]));
  });
});

describe("when", () => {
  test("the tab with the connection goes, another one takes over, and nothing is doubled", async () => {
    const [one, two] = await twoTabs();
    const message = two.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    await vi.waitFor(() => expect(message.text).toBe("a"));
    browser.kill(one);
    await vi.waitFor(() => expect(browser.upstreams).toHaveLength(2));
    browser.upstream.welcome();
    await greeted(two);
    await vi.waitFor(() => expect(browser.upstream.of("resume")).toEqual([{ type: "resume", id: "m1", after: 0 }]));
    browser.upstream.say(...start("m1").slice(0, 2), { type: "delta", id: "m1", after: 1, seq: 3, text: "ab" });
    browser.upstream.say(...finish("m1").slice(1));
    await vi.waitFor(() => expect(message.state).toBe("done"));
    expect(message.text).toBe("ab");
  });

  test("the tab with the connection sleeps, another one takes it, and gives it up to none when that one wakes", async () => {
    const [one, two] = await twoTabs();
    const asked = two.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    await vi.waitFor(() => expect(asked.text).toBe("a"));
    one.asleep = true;
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    two.client.check(); // As when the tab becomes visible.
    await vi.advanceTimersByTimeAsync(3_000 + ANSWER_MS + 100);
    vi.useRealTimers();
    await vi.waitFor(() => expect(browser.upstreams).toHaveLength(2));
    one.asleep = false;
    browser.upstream.welcome();
    await vi.waitFor(() => expect(browser.upstream.of("resume")).toHaveLength(1));
    browser.upstream.say({ type: "accepted", id: "m1", replay: true, state: "streaming", seq: 2 });
    browser.upstream.say({ ...start("m1")[1] }, { ...start("m1")[2] }, ...finish("m1"));
    await vi.waitFor(() => expect([asked.state, asked.text]).toEqual(["done", "ab"]));
    one.client.check();
    await greeted(one, two);
    expect(browser.upstreams).toHaveLength(2);
  });

  test("the connection breaks, all tabs know, and go on", async () => {
    const [one, two] = await twoTabs();
    const message = two.ask("m1");
    await vi.waitFor(() => expect(browser.upstream.of("send")).toHaveLength(1));
    browser.upstream.say(...start("m1"));
    await vi.waitFor(() => expect(message.text).toBe("a"));
    const phases: string[] = [];
    for (const tab of [one, two]) tab.client.on((e) => e.type === "status" && phases.push(e.status.phase));
    browser.upstream.onclose?.({ code: 1006, reason: "" });
    await vi.waitFor(() => expect(browser.upstreams).toHaveLength(2));
    expect(browser.upstream.sent).toEqual([]);
    browser.upstream.welcome([{ id: "m1", state: "streaming", seq: 2 }]);
    await greeted(one, two);
    expect(phases.filter((phase) => phase === "waiting")).toHaveLength(2);
    browser.upstream.say(...finish("m1"));
    await vi.waitFor(() => expect([message.state, message.text]).toEqual(["done", "ab"]));
  });

  test("the token is refused, every tab is, and a new token of one of them opens the connection for all", async () => {
    const [one, two] = [browser.tab({ token: "old" }), browser.tab({ token: "old" })];
    await vi.waitFor(() => expect(browser.upstreams).toHaveLength(1));
    browser.upstream.onopen?.(undefined as never);
    browser.upstream.onclose?.({ code: 4401, reason: "" });
    for (const tab of [one, two]) await vi.waitFor(() => expect(tab.client.status.closeCode).toBe(4401));
    two.client.setToken("new");
    await vi.waitFor(() => expect(browser.upstreams).toHaveLength(2));
    browser.upstream.welcome();
    await greeted(two);
    expect(browser.upstream.of("hello")).toMatchObject([{ token: "new" }]);
    one.client.setToken("new");
    await greeted(one);
    expect(browser.upstreams).toHaveLength(2);
    expect(browser.upstream.of("auth")).toEqual([]);
  });

  test("the platform has no locks, each tab has a connection of its own", () => {
    const opened: string[] = [];
    const connect = (url: string): WebSocketLike => {
      opened.push(url);
      return new Upstream();
    };
    const locks = undefined as unknown as Locks;
    new Client({ url: "ws://test", connect: sharedTabs({ account: "u", locks, client: { connect } }) }).start();
    expect(opened).toEqual(["ws://test"]);
  });
});

test("accounts never share a connection", async () => {
  const ann = browser.tab({}, "ann");
  const bob = browser.tab({}, "bob");
  await vi.waitFor(() => expect(browser.upstreams).toHaveLength(2));
  browser.upstreams[0]?.welcome();
  await greeted(ann);
  expect(bob.client.status.phase).toBe("connecting");
});
