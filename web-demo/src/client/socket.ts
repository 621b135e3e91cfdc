/**
 * The shell around `Session` for browsers and Node: one WebSocket, its timers, and what wakes it.
 *
 * It connects, says `hello` with every resume, sends heartbeats, reconnects with full-jitter backoff, and keeps the
 * open messages in storage so that a reload goes on where it was.
 */

import { backoffMs, mayReconnect } from "./backoff.ts";
import { type Codec, jsonCodec } from "./codec.ts";
import type { SendRequest, WelcomeFrame } from "./frames.ts";
import type { Message } from "./message.ts";
import { Session, type SessionEvent } from "./session.ts";
import { type KeyValue, OpenStore } from "./store.ts";

/** How long a connection may take to reach `welcome`, in milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** How long an answer to a check may take after sleep or a change of network, in milliseconds. */
export const CHECK_TIMEOUT_MS = 3_000;
/** Heartbeats in a row that may stay unanswered before the connection counts as dead. */
export const MISSED_HEARTBEATS = 2;
/** A connection that lived this long was good: the next failure starts from the shortest wait, in milliseconds. */
export const STABLE_AFTER_MS = 5_000;
/** How long to wait before a resume when the server says "later" but not when, in milliseconds. */
export const RESUME_LATER_MS = 1_000;
/** How often the open messages are written to storage while text arrives, in milliseconds. */
export const SAVE_EVERY_MS = 1_000;
/** Closes that a later moment may heal by itself, so that waking up tries again: no hello in time, too many. */
const HEALED_BY_TIME = new Set([4408, 4429]);

export interface WebSocketLike {
  binaryType: string;
  readonly protocol: string;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number, reason?: string): void;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: never) => void) | null;
}

export interface Clock {
  now(): number;
  setTimeout(callback: () => void, milliseconds: number): unknown;
  clearTimeout(timer: never): void;
}

/** The part of `window` and `document` that tells when to look after the connection. */
export interface Surroundings {
  addEventListener(type: string, listener: () => void): void;
  removeEventListener(type: string, listener: () => void): void;
}

export interface ClientOptions {
  url: string;
  token?: string;
  codec?: Codec;
  storage?: KeyValue;
  connect?: (url: string, subprotocol: string) => WebSocketLike;
  clock?: Clock;
  /** In [0, 1): spreads the reconnects. */
  random?: () => number;
  window?: Surroundings;
  document?: Surroundings & { readonly visibilityState: string };
}

/** `waiting`: until `retryAt`; `stopped`: closed with a code that reconnecting would not mend; `closed`: by us. */
export type Phase = "connecting" | "open" | "waiting" | "stopped" | "closed";

export interface Status {
  phase: Phase;
  /** When the next try to connect begins, by the client's clock, in milliseconds. */
  retryAt: number | undefined;
  /** Of the last heartbeat, in milliseconds. */
  roundTripMs: number | undefined;
  /** Why it is `stopped`. */
  closeCode: number | undefined;
  /** How many connections came to `welcome`. */
  connections: number;
  welcome: WelcomeFrame | undefined;
}

export type ClientEvent = SessionEvent | { type: "status"; status: Status };

const systemClock: Clock = {
  now: () => Date.now(),
  setTimeout: (callback, milliseconds) => setTimeout(callback, milliseconds),
  clearTimeout: (timer) => clearTimeout(timer),
};

export class Client {
  readonly session = new Session();
  status: Status = {
    phase: "closed",
    retryAt: undefined,
    roundTripMs: undefined,
    closeCode: undefined,
    connections: 0,
    welcome: undefined,
  };

  private readonly options: ClientOptions;
  private readonly clock: Clock;
  private readonly store: OpenStore;
  private readonly listeners = new Set<(event: ClientEvent) => void>();
  private readonly timers = new Map<string, unknown>();
  private socket: WebSocketLike | undefined;
  private codec: Codec;
  private failures = 0;
  private openedAt = 0;
  private nonce = 0;
  private unanswered = new Map<number, number>();

  constructor(options: ClientOptions) {
    this.options = options;
    this.clock = options.clock ?? systemClock;
    this.codec = options.codec ?? jsonCodec;
    this.session.token = options.token;
    this.store = new OpenStore(options.storage);
    this.session.restore(this.store.load());
  }

  /** Listen to everything that happens; the return value stops it. */
  on(listener: (event: ClientEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Connect, and stay connected until `close`. */
  start(): void {
    if (this.status.phase !== "closed") return;
    this.options.window?.addEventListener("online", this.wake);
    this.options.window?.addEventListener("pageshow", this.wake);
    this.options.window?.addEventListener("pagehide", this.saveNow);
    this.options.document?.addEventListener("visibilitychange", this.visibility);
    this.connect();
  }

  /** Disconnect for good. Open messages go on at the server and stay in storage. */
  close(): void {
    this.saveNow();
    this.options.window?.removeEventListener("online", this.wake);
    this.options.window?.removeEventListener("pageshow", this.wake);
    this.options.window?.removeEventListener("pagehide", this.saveNow);
    this.options.document?.removeEventListener("visibilitychange", this.visibility);
    this.drop();
    this.update({ phase: "closed", retryAt: undefined });
  }

  // --- requests ------------------------------------------------------------------------------------------------------

  /** Ask for a message; works offline too. `signal` cancels it. */
  send(request: SendRequest, options: { signal?: AbortSignal } = {}): Message {
    const message = this.session.send(request);
    options.signal?.addEventListener("abort", () => this.cancel(request.id), { once: true });
    this.afterRequest();
    return message;
  }

  /** Follow a message that was asked for elsewhere, or in an earlier life of the page. */
  follow(id: string): Message {
    const message = this.session.resume(id);
    this.afterRequest();
    return message;
  }

  cancel(id: string): void {
    this.emit(this.session.cancel(id));
    this.afterRequest();
  }

  /** Ask again for a message that failed or was refused; false if it is in no such state. */
  retry(id: string): boolean {
    const retried = this.session.retry(id);
    this.afterRequest();
    return retried;
  }

  detach(id: string): void {
    this.session.detach(id);
    this.afterRequest();
  }

  /** Use another token from now on; a connection that was refused is tried again. */
  setToken(token: string | undefined): void {
    this.session.token = token;
    if (token !== undefined) this.session.auth(token);
    this.flush();
    if (this.status.phase === "stopped") this.connect();
  }

  /** Speak another codec: reconnects at once. */
  setCodec(codec: Codec): void {
    if (codec.subprotocol === this.codec.subprotocol) return;
    this.codec = codec;
    if (this.status.phase !== "closed") this.connect();
  }

  /** Drop the connection without a word, as a dead network would; the next try begins after `downForMs`. */
  cut(downForMs = 0): void {
    if (this.status.phase === "closed") return;
    this.drop();
    this.waitFor(downForMs);
  }

  /** Connect now, whatever the state. */
  reconnect(): void {
    if (this.status.phase !== "closed") this.connect();
  }

  /** Measure the round trip now, if connected and no heartbeat is under way. */
  probe(): void {
    if (this.status.phase === "open" && this.unanswered.size === 0) this.ping();
  }

  /** Make sure the connection is alive: connect now if it isn't, else ask for a quick answer. */
  check(): void {
    const { phase, closeCode } = this.status;
    if (phase === "waiting" || (phase === "stopped" && HEALED_BY_TIME.has(closeCode ?? 0))) this.connect();
    if (phase !== "open") return;
    this.ping();
    const asked = this.nonce;
    this.arm("check", CHECK_TIMEOUT_MS, () => {
      if (this.unanswered.has(asked)) this.onLost(1006);
    });
  }

  // --- the connection ------------------------------------------------------------------------------------------------

  private readonly wake = (): void => this.check();
  private readonly visibility = (): void => {
    if (this.options.document?.visibilityState === "visible") this.check();
    else this.saveNow();
  };

  private connect(): void {
    this.drop();
    this.update({ phase: "connecting", retryAt: undefined, closeCode: undefined, roundTripMs: undefined });
    this.arm("connect", CONNECT_TIMEOUT_MS, () => this.onLost(1006));
    const open = this.options.connect ?? ((url, subprotocol) => new WebSocket(url, subprotocol) as WebSocketLike);
    const socket = open(this.options.url, this.codec.subprotocol);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      socket.send(this.codec.encode([this.session.hello()]));
    };
    socket.onmessage = ({ data }) => this.onData(data as string | ArrayBuffer);
    socket.onclose = ({ code }) => this.onLost(code);
    socket.onerror = () => undefined; // A close always follows.
  }

  private onData(data: string | ArrayBuffer): void {
    let events: SessionEvent[];
    try {
      events = this.codec.decode(data).flatMap((frame) => this.session.receive(frame));
    } catch {
      this.onLost(1006); // Not our protocol: nothing that comes after it can be trusted either.
      return;
    }
    this.emit(events);
    this.flush();
  }

  private onLost(code: number): void {
    const stable = this.status.phase === "open" && this.clock.now() - this.openedAt >= STABLE_AFTER_MS;
    this.drop();
    this.failures = stable ? 1 : this.failures + 1;
    if (!mayReconnect(code)) {
      this.update({ phase: "stopped", closeCode: code, retryAt: undefined });
      return;
    }
    this.waitFor(backoffMs(this.failures, (this.options.random ?? Math.random)()));
  }

  private waitFor(milliseconds: number): void {
    this.update({ phase: "waiting", retryAt: this.clock.now() + milliseconds });
    this.arm("retry", milliseconds, () => this.connect());
  }

  /** Let go of the socket; whatever it still says is not heard. */
  private drop(): void {
    for (const name of [...this.timers.keys()]) this.disarm(name);
    this.unanswered.clear();
    this.session.disconnected();
    const socket = this.socket;
    this.socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  private onWelcome(frame: WelcomeFrame): void {
    this.disarm("connect");
    this.openedAt = this.clock.now();
    this.update({ phase: "open", welcome: frame, connections: this.status.connections + 1 });
    this.ping();
    this.heartbeat(frame.heartbeat_seconds * 1000);
  }

  private heartbeat(everyMs: number): void {
    this.arm("heartbeat", everyMs, () => {
      if (this.unanswered.size >= MISSED_HEARTBEATS) {
        this.onLost(1006);
        return;
      }
      this.ping();
      this.heartbeat(everyMs);
    });
  }

  private ping(): void {
    this.session.ping(++this.nonce);
    this.unanswered.set(this.nonce, this.clock.now());
    this.flush();
  }

  private onPong(nonce: string | number | undefined): void {
    const sentAt = typeof nonce === "number" ? this.unanswered.get(nonce) : undefined;
    this.unanswered.clear();
    if (sentAt !== undefined) this.update({ roundTripMs: this.clock.now() - sentAt });
  }

  // --- events and storage --------------------------------------------------------------------------------------------

  private emit(events: SessionEvent[]): void {
    for (const event of events) {
      if (event.type === "welcomed") this.onWelcome(event.frame);
      else if (event.type === "pong") this.onPong(event.nonce);
      else if (event.type === "goaway") this.arm("goaway", event.afterMs, () => this.connect());
      else if (event.type === "stalled") this.resumeLater(event.message, event.afterMs ?? RESUME_LATER_MS);
      else if (event.type === "output") this.saveSoon();
      else if (event.type === "ended" || event.type === "accepted") this.saveNow();
      this.tell(event);
    }
  }

  private resumeLater(message: Message, afterMs: number): void {
    this.arm(`later ${message.id}`, afterMs, () => {
      this.session.resume(message.id);
      this.flush();
    });
  }

  private afterRequest(): void {
    this.flush();
    this.saveNow();
  }

  private flush(): void {
    const frames = this.session.outgoing();
    if (frames.length > 0) this.socket?.send(this.codec.encode(frames));
  }

  private saveSoon(): void {
    if (!this.timers.has("save")) this.arm("save", SAVE_EVERY_MS, this.saveNow);
  }

  private readonly saveNow = (): void => {
    this.store.save(this.session.save());
  };

  private update(change: Partial<Status>): void {
    this.status = { ...this.status, ...change };
    this.tell({ type: "status", status: this.status });
  }

  private tell(event: ClientEvent): void {
    for (const listener of this.listeners) listener(event);
  }

  private arm(name: string, milliseconds: number, callback: () => void): void {
    this.disarm(name);
    const timer = this.clock.setTimeout(() => {
      this.timers.delete(name);
      callback();
    }, milliseconds);
    this.timers.set(name, timer);
  }

  private disarm(name: string): void {
    if (this.timers.has(name)) this.clock.clearTimeout(this.timers.get(name) as never);
    this.timers.delete(name);
  }
}
