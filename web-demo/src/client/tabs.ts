/**
 * One connection for all tabs of a browser: `new Client({ url, connect: sharedTabs({ account }) })`.
 *
 * The tab that holds a Web Lock has the connection and serves the others over a BroadcastChannel, as a small server of
 * the same protocol: every tab keeps its own `Session`, with its own cursors and hashes, and none of the rules is
 * written twice. When that tab goes, the lock passes on, and the others reconnect to its successor; when it sleeps and
 * does not answer, one of them takes the lock from it. Where a platform lacks either, each tab has a connection of its
 * own.
 */

import { jsonCodec } from "./codec.ts";
import type { Message } from "./message.ts";
import { sha256 } from "./sha256.ts";
import { Client, type ClientEvent, type ClientOptions, type Connect, type WebSocketLike } from "./socket.ts";
import type { ClientFrame, ErrorBody, SendRequest, ServerFrame, Welcome } from "./types.ts";

/** Whose tabs share a connection, and how that one is made. */
export interface SharedTabsOptions {
  /** Whose connection it is, for instance the user's id: only tabs that give the same one share it. */
  account: string;
  /** How the shared connection is made: `codec`, `connect`, `WebSocket`, … of `ClientOptions`. */
  client?: Omit<ClientOptions, "url" | "token" | "storage">;
  /** Those of the browser unless given. */
  locks?: Locks;
  /** Likewise; makes the channel between tabs that know this name. */
  channel?: (name: string) => Channel;
}

/** The part of `navigator.locks` that is needed. */
export interface Locks {
  /** Rejects when another tab steals the lock, or `signal` says that it is not wanted any more. */
  request(
    name: string,
    options: { steal?: boolean; signal?: AbortSignal },
    held: () => Promise<void>,
  ): Promise<unknown>;
}

/** The part of `BroadcastChannel` that is needed. */
export interface Channel {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(note: Note): void;
  close(): void;
}

/** What tabs say to each other. `tab` is the connection of one tab. */
type Note =
  | { kind: "here" }
  | { kind: "open" | "opened"; tab: string }
  | { kind: "close"; tab: string; code: number }
  | { kind: "up" | "down"; tab: string; data: string };

const LOST = 1006;
/** A tab that does not answer for so long sleeps, and another one takes its place, in milliseconds. */
export const ANSWER_MS = 2_000;
/** A tab that said nothing for so long is taken for gone, in milliseconds: hidden tabs have timers of a minute. */
const SILENT_MS = 300_000;
/** So many ended messages are kept for tabs that come late. */
const MAX_ENDED = 64;
const JOURNALED: ReadonlySet<string> = new Set("attempt delta done failed cancelled".split(" "));
const FOLLOWED: ReadonlySet<string> = new Set("accepted attempt delta snapshot done failed cancelled error".split(" "));

/**
 * For `ClientOptions.connect`: one WebSocket for all tabs of a browser that give the same `url` and `account`. The tabs
 * speak JSON among themselves: to connect with another codec throws `TypeError`.
 */
export function sharedTabs(options: SharedTabsOptions): Connect {
  const locks = options.locks ?? (globalThis.navigator as { locks?: Locks } | undefined)?.locks;
  const channelOf =
    options.channel ??
    (typeof BroadcastChannel === "function" ? (name: string) => new BroadcastChannel(name) as Channel : undefined);
  if (!locks || !channelOf) {
    return options.client?.connect ?? ((url, subprotocol) => new WebSocket(url, subprotocol) as WebSocketLike);
  }
  const candidates = new Map<string, Candidate>();
  return (url, subprotocol) => {
    if (subprotocol !== jsonCodec.subprotocol) {
      throw new TypeError("tabs speak JSON among themselves: give the codec to sharedTabs({ client: { codec } })");
    }
    const name = `tidewire ${url} ${options.account}`;
    let candidate = candidates.get(name);
    if (!candidate) {
      candidate = new Candidate(locks, name, () => new Hub(url, channelOf(name), options.client));
      candidates.set(name, candidate);
    }
    candidate.stand();
    return new TabSocket(channelOf(name), () => candidate.seize());
  };
}

/** This tab's claim to the lock of the connection. */
class Candidate {
  private readonly locks: Locks;
  private readonly name: string;
  private readonly lead: () => Hub;
  /** Takes back a request that waits for its turn. */
  private waiting: AbortController | undefined;
  private leading = false;

  constructor(locks: Locks, name: string, lead: () => Hub) {
    this.locks = locks;
    this.name = name;
    this.lead = lead;
  }

  /** Take over when the tab that has the connection is gone. */
  stand(): void {
    if (this.waiting || this.leading) return;
    this.waiting = new AbortController();
    this.request({ signal: this.waiting.signal });
  }

  /** Take over now: the tab that has the connection does not answer. */
  seize(): void {
    if (this.leading) return;
    this.waiting?.abort();
    this.request({ steal: true });
  }

  private request(options: { steal?: boolean; signal?: AbortSignal }): void {
    let hub: Hub | undefined;
    const held = (): Promise<void> => {
      this.waiting = undefined;
      this.leading = true;
      hub = this.lead();
      return new Promise(() => undefined); // Held until the tab is gone, or another one takes it.
    };
    this.locks.request(this.name, options, held).catch(() => {
      if (!hub) return;
      this.leading = false;
      hub.retire();
      this.stand();
    });
  }
}

/** A tab's end of the line: looks like a WebSocket to its `Client`. */
class TabSocket implements WebSocketLike {
  binaryType = "";
  readonly protocol = jsonCodec.subprotocol;
  onopen: WebSocketLike["onopen"] = null;
  onmessage: WebSocketLike["onmessage"] = null;
  onclose: WebSocketLike["onclose"] = null;
  onerror: WebSocketLike["onerror"] = null;
  private readonly tab = Array.from(crypto.getRandomValues(new Uint8Array(8))).join("-");
  private readonly channel: Channel;
  private opened = false;
  private closed = false;
  private readonly silence: ReturnType<typeof setTimeout>;

  /** `unanswered` is called if nobody serves this tab in time. */
  constructor(channel: Channel, unanswered: () => void) {
    this.channel = channel;
    this.silence = setTimeout(unanswered, ANSWER_MS);
    channel.onmessage = ({ data }) => this.hear(data as Note);
    channel.postMessage({ kind: "open", tab: this.tab });
  }

  send(data: string | Uint8Array): void {
    if (!this.closed) this.channel.postMessage({ kind: "up", tab: this.tab, data: data as string });
  }

  close(): void {
    if (this.closed) return; // A closed channel throws at whoever uses it.
    this.closed = true;
    clearTimeout(this.silence);
    this.channel.postMessage({ kind: "close", tab: this.tab, code: 1000 });
    this.channel.close();
  }

  private hear(note: Note): void {
    if (note.kind === "here") {
      // Another tab has the connection now, so what was open is gone; what was not asks again.
      if (this.opened) this.end(LOST);
      else this.channel.postMessage({ kind: "open", tab: this.tab });
    } else if (note.tab !== this.tab) {
      return;
    } else if (note.kind === "opened" && !this.opened) {
      this.opened = true;
      clearTimeout(this.silence);
      this.onopen?.(undefined as never);
    } else if (note.kind === "down") {
      this.onmessage?.({ data: note.data });
    } else if (note.kind === "close" && note.code !== 1000) {
      this.end(note.code);
    }
  }

  private end(code: number): void {
    this.closed = true;
    clearTimeout(this.silence);
    this.channel.close();
    this.onclose?.({ code, reason: "" });
  }
}

/** What the hub knows of one tab. */
interface Tab {
  heardAt: number;
  /** It said `hello` and waits for the connection. */
  waiting: boolean;
  greeted: boolean;
  follows: Set<string>;
  conversations: Set<string>;
}

/** The tab that has the connection serves all tabs, its own included. */
class Hub {
  private readonly channel: Channel;
  private readonly client: Client;
  private readonly tabs = new Map<string, Tab>();
  /** Who asked for what of a conversation, in order: answers do not tell. */
  private readonly asked: { key: string; tab: string }[] = [];
  private readonly ended: string[] = [];
  /** Message → its conversation, as far as events told. */
  private readonly conversationOf = new Map<string, string>();

  constructor(url: string, channel: Channel, options: SharedTabsOptions["client"]) {
    this.channel = channel;
    this.client = new Client({ ...options, url, onFrame: (frame) => this.relay(frame) });
    this.client.on((event) => this.onEvent(event));
    channel.onmessage = ({ data }) => this.hear(data as Note);
    channel.postMessage({ kind: "here" });
  }

  /** Another tab has the connection now. */
  retire(): void {
    this.channel.onmessage = null;
    this.client.close();
    this.channel.close();
  }

  private hear(note: Note): void {
    if (note.kind === "open") {
      if (!this.tabs.has(note.tab)) {
        const sets = { follows: new Set<string>(), conversations: new Set<string>() };
        this.tabs.set(note.tab, { heardAt: Date.now(), waiting: false, greeted: false, ...sets });
      }
      this.channel.postMessage({ kind: "opened", tab: note.tab });
    } else if (note.kind === "close") {
      this.leave(note.tab);
    } else if (note.kind === "up") {
      const tab = this.tabs.get(note.tab);
      if (!tab) return;
      tab.heardAt = Date.now();
      for (const frame of jsonCodec.decode(note.data) as unknown as ClientFrame[]) this.take(note.tab, tab, frame);
    }
  }

  private tell(id: string, ...frames: ServerFrame[]): void {
    for (const frame of frames) this.channel.postMessage({ kind: "down", tab: id, data: JSON.stringify(frame) });
  }

  private leave(id: string): void {
    const tab = this.tabs.get(id);
    this.tabs.delete(id);
    for (const message of tab?.follows ?? []) this.letGo(message);
    for (const conversation of tab?.conversations ?? []) this.leaveConversation(conversation);
  }

  // --- what tabs ask -------------------------------------------------------------------------------------------------

  private take(id: string, tab: Tab, frame: ClientFrame): void {
    switch (frame.type) {
      case "hello":
        this.hello(id, tab, frame.token ?? undefined);
        break;
      case "send":
        this.send(id, tab, frame);
        break;
      case "resume":
        tab.follows.add(frame.id);
        if (this.client.session.messages.has(frame.id)) this.catchUp(id, frame.id, frame.after ?? 0);
        else this.client.follow(frame.id);
        break;
      case "detach":
        tab.follows.delete(frame.id);
        this.letGo(frame.id);
        break;
      case "cancel":
        this.client.cancel(frame.id);
        break;
      case "auth":
        this.client.setToken(frame.token);
        break;
      case "ping":
        this.tell(id, { type: "pong", nonce: frame.nonce ?? null, open: this.heads(tab) });
        break;
      case "subscribe":
        tab.conversations.add(frame.conversation);
        this.asked.push({ key: `subscribed ${frame.conversation}`, tab: id });
        this.client.subscribe(frame.conversation, frame.after ?? 0);
        break;
      case "unsubscribe":
        tab.conversations.delete(frame.conversation);
        this.leaveConversation(frame.conversation);
        break;
      case "history": {
        const { type: _, conversation, before, after, limit, branch } = frame;
        this.asked.push({ key: `history ${conversation}`, tab: id });
        this.client.history(conversation, {
          ...(before != null && { before }),
          ...(after != null && { after }),
          ...(limit !== undefined && { limit }),
          ...(branch != null && { branch }),
        });
        break;
      }
      case "conversation": {
        const { type: _, ...request } = frame;
        this.asked.push({ key: `${frame.op} ${frame.conversation ?? ""}`, tab: id });
        this.client.conversation(request);
      }
    }
  }

  private hello(id: string, tab: Tab, token: string | undefined): void {
    tab.waiting = true;
    if (token !== undefined && token !== this.client.session.token) this.client.setToken(token);
    const { phase, closeCode } = this.client.status;
    if (phase === "closed") this.client.start();
    else if (phase === "open") this.greet(id, tab);
    else if (phase === "stopped") this.closeTab(id, closeCode ?? LOST);
  }

  /** Every resume comes as a frame of its own then, which is answered from what is known here. */
  private greet(id: string, tab: Tab): void {
    tab.waiting = false;
    tab.greeted = true;
    this.tell(id, { ...(this.client.status.welcome as Welcome), resumed: [] });
  }

  private send(id: string, tab: Tab, frame: Extract<ClientFrame, { type: "send" }>): void {
    const { type: _, retry_of, after, ...request } = frame;
    const known = this.client.session.messages.get(frame.id);
    tab.follows.add(frame.id);
    if (!known) {
      this.client.send(request as SendRequest);
    } else if (known.request && JSON.stringify(known.request) !== JSON.stringify(request)) {
      tab.follows.delete(frame.id);
      this.tell(id, { type: "error", re: "send", id: frame.id, error: MISMATCH });
    } else if (!(known.ended && (retry_of != null || known.state === "refused") && this.client.retry(frame.id))) {
      this.catchUp(id, frame.id, after ?? 0);
    }
  }

  /** What stands of a message, for a tab whose cursor is elsewhere; then its end, if it has ended. */
  private catchUp(id: string, messageId: string, after: number): void {
    const message = this.client.session.messages.get(messageId) as Message;
    const { end, attempt, text, reasoning } = message;
    if (message.state === "detached") this.client.follow(messageId);
    if (message.state === "sending") return; // The server's answer is on its way.
    const seq = end ? (end.after ?? end.seq - 1) : message.cursor;
    if (!message.ended || end) {
      const state = end ? end.type : message.serverState || "streaming";
      this.tell(id, { type: "accepted", id: messageId, replay: true, state, seq: end?.seq ?? seq });
      if (seq !== after && seq > 0) {
        const calls = message.toolCalls as Record<string, unknown>[];
        const whole = { text, reasoning, ...(calls.length > 0 && { tool_calls: calls }) };
        this.tell(id, { type: "snapshot", id: messageId, seq, attempt, part: 1, last: true, ...whole });
      }
    }
    if (message.ended) this.tell(id, this.endOf(message, seq));
  }

  private endOf(message: Message, after: number): ServerFrame {
    const { id, end, error } = message;
    if (end) return { ...end, after };
    if (error) return { type: "error", re: message.state === "refused" ? "send" : "resume", id, error };
    // It was stopped before it ever went out.
    const nothing = { text_bytes: 0, text_sha256: sha256(new Uint8Array()), usage: {} };
    return { type: "cancelled", id, after: 0, seq: 1, ...nothing };
  }

  private heads(tab: Tab): { id: string; seq: number }[] {
    return [...tab.follows].flatMap((id) => {
      const message = this.client.session.messages.get(id);
      return message && message.state !== "sending" ? [{ id, seq: message.cursor }] : [];
    });
  }

  /** Nobody may want a message any more. */
  private letGo(id: string): void {
    if ([...this.tabs.values()].some((tab) => tab.follows.has(id))) return;
    if (this.client.session.messages.get(id)?.ended === false) this.client.detach(id);
  }

  private leaveConversation(conversation: string): void {
    if ([...this.tabs.values()].some((tab) => tab.conversations.has(conversation))) return;
    this.client.unsubscribe(conversation);
  }

  // --- what the server says ------------------------------------------------------------------------------------------

  /** Hand a frame on, after it was applied here, to the tabs that it concerns. */
  private relay(frame: ServerFrame): void {
    const { id, conversation } = frame as { id?: string; conversation?: string };
    if (frame.type === "history") this.answer(`history ${conversation}`, frame);
    else if (frame.type === "conversation" && this.answer(`${frame.op} ${conversation ?? ""}`, frame)) return;
    else if (frame.type === "error" && (frame.re === "history" || frame.re === "subscribe")) {
      this.answer(`${frame.re === "history" ? "history" : "subscribed"} ${conversation}`, frame);
    } else if (frame.type === "message" || frame.type === "conversation") {
      if (frame.type === "message") this.conversationOf.set(frame.id, frame.conversation);
      this.tellAll(frame, (tab) => tab.conversations.has(conversation ?? ""));
    } else if (frame.type === "quota" || (frame.type === "error" && !id)) this.tellAll(frame, () => true);
    else if (FOLLOWED.has(frame.type) && id !== undefined && this.applied(id, frame)) {
      const conversation = this.conversationOf.get(id) ?? this.client.session.messages.get(id)?.request?.conversation;
      this.tellAll(frame, (tab) => tab.follows.has(id) || tab.conversations.has(conversation ?? ""));
    }
  }

  /** What was not applied here would only make every tab ask again; it comes once more when this one has asked. */
  private applied(id: string, frame: ServerFrame): boolean {
    if (!JOURNALED.has(frame.type)) return true;
    return this.client.session.messages.get(id)?.cursor === (frame as { seq?: number }).seq;
  }

  private tellAll(frame: ServerFrame, concerned: (tab: Tab) => boolean): void {
    for (const [id, tab] of this.tabs) if (tab.greeted && concerned(tab)) this.tell(id, frame);
  }

  /** Whether somebody had asked for it. */
  private answer(key: string, frame: ServerFrame): boolean {
    const index = this.asked.findIndex((asked) => asked.key === key);
    if (index < 0) return false;
    const [{ tab } = { tab: "" }] = this.asked.splice(index, 1);
    this.tell(tab, frame);
    return true;
  }

  private onEvent(event: ClientEvent): void {
    if (event.type === "ended") this.onEnded(event.message);
    if (event.type !== "status") return;
    const { phase, closeCode } = event.status;
    if (phase === "open") this.onOpen();
    else if (phase === "waiting" || phase === "stopped") this.closeAll(closeCode ?? LOST);
  }

  private onOpen(): void {
    for (const [id, tab] of this.tabs) if (tab.waiting) this.greet(id, tab);
    for (const [id, tab] of this.tabs) if (Date.now() - tab.heardAt > SILENT_MS) this.leave(id);
  }

  /** An end that no frame told: refused here, stopped before it went out, given up. */
  private onEnded(message: Message): void {
    const { id, end } = message;
    if (!end) {
      queueMicrotask(() => this.tellAll(this.endOf(message, message.cursor), (tab) => tab.follows.has(id)));
    }
    this.ended.push(id);
    const oldest = this.ended.length > MAX_ENDED ? this.ended.shift() : undefined;
    if (oldest === undefined || oldest === id) return;
    this.client.forget(oldest);
    this.conversationOf.delete(oldest);
  }

  /** The connection is lost: so are those of the tabs, whose clients come back by themselves. */
  private closeAll(code: number): void {
    for (const [id, tab] of this.tabs) {
      if (tab.waiting && code === LOST) continue; // It is served by the next connection.
      this.closeTab(id, code);
    }
    this.asked.length = 0;
  }

  private closeTab(id: string, code: number): void {
    this.channel.postMessage({ kind: "close", tab: id, code });
    this.tabs.delete(id);
  }
}

const MISMATCH: ErrorBody = {
  ...{ code: "idempotency_mismatch", class: "permanent", status: 422, retryable: false },
  message: "this id was used by another tab for another request",
};
