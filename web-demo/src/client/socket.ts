/**
 * The shell around `Session` for browsers and Node: one WebSocket, its timers, and what wakes it.
 *
 * It connects, says `hello` with every resume, sends heartbeats, reconnects with full-jitter backoff, and keeps the
 * open messages in storage so that a reload goes on where it was.
 */

import { Answer } from "./answer.ts";
import { backoffMs, LONGEST_WAIT_MS, mayReconnect } from "./backoff.ts";
import { type Codec, jsonCodec } from "./codec.ts";
import { newId } from "./ids.ts";
import type { Message } from "./message.ts";
import type {
  ClientEvent,
  ClientOptions,
  Clock,
  FollowOptions,
  PageState,
  Status,
  Surroundings,
  TokenSource,
  WebSocketLike,
} from "./options.ts";
import { type Kept, type PageOptions, Session, type SessionEvent } from "./session.ts";
import { utf8 } from "./sha256.ts";
import { OpenStore } from "./store.ts";
import type { ClientFrame, ConversationRequest, ErrorBody, SendRequest, Welcome } from "./types.ts";

export type * from "./options.ts";

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
/** A token is renewed after this share of its life. */
export const RENEW_SHARE = 0.8;
/** But not sooner, however short its life, in milliseconds: the source is asked over a network. */
const RENEW_FLOOR_MS = 200;
/** The longest time a timer of a browser can be set to, in milliseconds. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const UNAUTHENTICATED = 4401;
/** What moves a cursor that is kept, often. */
const SAVED_SOON = new Set(["output", "notice", "conversation"]);
/** Closes that a later moment may heal by itself, so that waking up tries again: no hello in time, too many. */
const HEALED_BY_TIME = new Set([4408, 4429]);

const systemClock: Clock = {
  now: () => Date.now(),
  setTimeout: (callback, milliseconds) => setTimeout(callback, milliseconds),
  clearTimeout: (timer) => clearTimeout(timer),
};

const page = globalThis as { WebSocket?: unknown; window?: unknown; document?: unknown };

/** `candidate` if it can be listened to: React Native has a `window` that cannot. */
function listenable<T extends Surroundings>(candidate: unknown): T | undefined {
  return typeof (candidate as T | undefined)?.addEventListener === "function" ? (candidate as T) : undefined;
}

/**
 * A connection that comes back, and all messages on it. It does nothing before `start`; requests made earlier, or while
 * it is down, go out later. What happens is told to the listeners of `on`; the failure of a message comes as its
 * `ended` event, and out of an `Answer` as an exception.
 */
export class Client {
  readonly session = new Session();
  /** How the connection is; replaced, never changed. */
  status: Status = {
    phase: "closed",
    retryAt: undefined,
    roundTripMs: undefined,
    closeCode: undefined,
    connections: 0,
    welcome: undefined,
  };

  /** The last error that concerned the connection and no message. */
  lastError: ErrorBody | undefined;
  /** Whether `start` was called. */
  started = false;

  private readonly options: ClientOptions;
  private readonly window: Surroundings | undefined;
  private readonly document: PageState | undefined;
  private tokenSource: TokenSource | undefined;
  private tokenRefused = false;
  private readonly releases = new Map<string, () => void>();
  private readonly clock: Clock;
  private readonly store: OpenStore;
  private readonly listeners = new Set<(event: ClientEvent) => void>();
  private readonly timers = new Map<string, unknown>();
  private socket: WebSocketLike | undefined;
  private codec: Codec;
  private failures = 0;
  /** The platform says that there is no network. It may be wrong, and a server on this machine needs none. */
  private offline = false;
  /** Number of the connection; what belongs to an earlier one is not heard. */
  private attempt = 0;
  private openedAt = 0;
  private nonce = 0;
  private unanswered = new Map<number, number>();

  constructor(options: ClientOptions) {
    this.options = options;
    this.clock = options.clock ?? systemClock;
    this.codec = options.codec ?? jsonCodec;
    if (typeof options.token === "function") this.tokenSource = options.token;
    else this.session.token = options.token;
    this.window = options.window === undefined ? listenable(page.window) : (options.window ?? undefined);
    this.document = options.document === undefined ? listenable(page.document) : (options.document ?? undefined);
    this.store = new OpenStore(options.storage, options.storageKey);
    this.session.restore(this.store.load(), this.store.cursors());
  }

  /** Listen to everything that happens; the return value stops it. */
  on(listener: (event: ClientEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * Connect, and stay connected until `close`.
   * Throws `TypeError` if the platform has no WebSocket and none was given.
   */
  start(): void {
    if (this.status.phase !== "closed") return;
    this.started = true;
    this.window?.addEventListener("online", this.online);
    this.window?.addEventListener("offline", this.lostNetwork);
    this.window?.addEventListener("pageshow", this.wake);
    this.window?.addEventListener("pagehide", this.saveNow);
    this.document?.addEventListener("visibilitychange", this.visibility);
    this.connect();
  }

  /** Disconnect for good. Open messages go on at the server and stay in storage. */
  close(): void {
    this.saveNow();
    this.window?.removeEventListener("online", this.online);
    this.window?.removeEventListener("offline", this.lostNetwork);
    this.window?.removeEventListener("pageshow", this.wake);
    this.window?.removeEventListener("pagehide", this.saveNow);
    this.document?.removeEventListener("visibilitychange", this.visibility);
    this.drop();
    this.offline = false;
    this.update({ phase: "closed", retryAt: undefined });
  }

  // --- requests ------------------------------------------------------------------------------------------------------

  /** Ask for a message; works offline too. Throws `Error` if this client has one of that id. */
  send(request: SendRequest, options: FollowOptions = {}): Message {
    const message = this.session.send(request);
    this.abortWith(options.signal, message);
    this.afterRequest();
    return message;
  }

  /** Like `send`, for `for await (const piece of client.ask(…))`; makes an id if there is none. */
  ask(request: Omit<SendRequest, "id"> & { id?: string }, options: FollowOptions = {}): Answer {
    return new Answer(this, this.send({ ...request, id: request.id ?? newId() }, options));
  }

  /** Follow a message that was asked for elsewhere, or in an earlier life of the page. */
  follow(id: string, options: FollowOptions & Kept = {}): Message {
    const message = this.session.resume(id, options);
    this.abortWith(options.signal, message);
    this.afterRequest();
    return message;
  }

  /** Like `follow`, to be awaited or iterated. A message that this client follows already is only awaited. */
  attach(id: string, options: FollowOptions & Kept = {}): Answer {
    const known = this.session.messages.get(id);
    if (!known || known.state === "detached") return new Answer(this, this.follow(id, options));
    this.abortWith(options.signal, known);
    return new Answer(this, known);
  }

  /** Stop generating, at the server too; what stands is kept. The receipt is an `ended` event. */
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

  /** Stop following a message here; it goes on. */
  detach(id: string): void {
    this.session.detach(id);
    this.afterRequest();
  }

  /** Drop an ended or detached message from memory. */
  forget(id: string): void {
    this.session.forget(id);
  }

  /**
   * Follow every message of a conversation, from the event `after` of its log on: the `seq` of the page of its history
   * that is shown. Where `session.subscribed` tells one already, storage kept it and it is followed from there.
   */
  subscribe(conversation: string, after = 0): void {
    this.session.subscribe(conversation, after);
    this.afterRequest();
  }

  /** Stop following a conversation; its messages go on. */
  unsubscribe(conversation: string): void {
    this.session.unsubscribe(conversation);
    this.afterRequest();
  }

  /** Ask for a page of a conversation; it comes as a `history` event. */
  history(conversation: string, options: PageOptions = {}): void {
    this.session.history(conversation, options);
    this.flush();
  }

  /** One operation on conversations; the answer comes as a `conversation` event. */
  conversation(request: Omit<ConversationRequest, "type">): void {
    this.session.conversation(request);
    this.flush();
  }

  /** Use another token from now on, in place of a token source too; a refused connection is tried again. */
  setToken(token: string | undefined): void {
    this.tokenSource = undefined;
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
  /** What was begun without a network may hang: begin anew. */
  private readonly online = (): void => {
    const anew = this.offline && this.status.phase === "connecting";
    this.offline = false;
    if (anew) this.connect();
    else this.check();
  };
  /** Don't wait for heartbeats to fail: where there really is no network, the one try that follows fails at once. */
  private readonly lostNetwork = (): void => {
    this.offline = true;
    if (this.status.phase !== "stopped") this.connect();
  };
  private readonly visibility = (): void => {
    if (this.document?.visibilityState === "visible") this.check();
    else this.saveNow();
  };

  private connect(): void {
    this.drop();
    this.update({ phase: "connecting", retryAt: undefined, closeCode: undefined, roundTripMs: undefined });
    this.arm("connect", CONNECT_TIMEOUT_MS, () => this.onLost(1006));
    const attempt = ++this.attempt;
    const current = (): boolean => this.attempt === attempt && this.status.phase === "connecting";
    if (!this.tokenSource) {
      this.open();
      return;
    }
    this.freshToken().then(
      () => current() && this.open(),
      (error) => current() && this.onNoToken(error),
    );
  }

  private async freshToken(): Promise<void> {
    const token = await this.tokenSource?.();
    if (this.tokenSource) this.session.token = token;
  }

  private onNoToken(error: unknown): void {
    const message = `the token source failed: ${error instanceof Error ? error.message : String(error)}`;
    const body: ErrorBody = { code: "token_unavailable", class: "temporary", status: 503, message, retryable: true };
    this.emit([{ type: "error", message: undefined, re: "hello", error: body }]);
    this.onLost(1006);
  }

  private open(): void {
    const socket = this.newSocket();
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.transmit([this.session.hello()]);
    };
    socket.onmessage = ({ data }) => this.onData(data as string | ArrayBuffer);
    socket.onclose = ({ code }) => this.onLost(code);
    socket.onerror = () => undefined; // A close always follows.
  }

  private newSocket(): WebSocketLike {
    const { url, connect } = this.options;
    if (connect) return connect(url, this.codec.subprotocol);
    const Socket = this.options.WebSocket ?? (page.WebSocket as ClientOptions["WebSocket"]);
    if (!Socket) {
      throw new TypeError(
        "this platform has no WebSocket: give one, as in new Client({ WebSocket }) with that of the package ws",
      );
    }
    return new Socket(url, this.codec.subprotocol) as WebSocketLike;
  }

  private onData(data: string | ArrayBuffer): void {
    const events: SessionEvent[] = [];
    try {
      for (const frame of this.codec.decode(data)) {
        events.push(...this.session.receive(frame));
        this.options.onFrame?.(frame);
      }
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
    if (!this.offline) this.failures = stable ? 1 : this.failures + 1;
    if (code === UNAUTHENTICATED && this.tokenSource && !this.tokenRefused) {
      this.tokenRefused = true; // It expired on the way; a fresh one is tried once.
      this.connect();
      return;
    }
    if (!mayReconnect(code)) {
      this.update({ phase: "stopped", closeCode: code, retryAt: undefined });
      return;
    }
    this.waitFor(this.offline ? LONGEST_WAIT_MS : backoffMs(this.failures, (this.options.random ?? Math.random)()));
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

  private onWelcome(frame: Welcome): void {
    this.disarm("connect");
    this.tokenRefused = false;
    this.lastError = undefined;
    if (this.tokenSource && frame.expires_in_seconds != null) {
      this.renewAfter(Math.max(RENEW_FLOOR_MS, RENEW_SHARE * frame.expires_in_seconds * 1000));
    }
    this.openedAt = this.clock.now();
    this.update({ phase: "open", welcome: frame, connections: this.status.connections + 1 });
    this.ping();
    this.heartbeat(frame.heartbeat_seconds * 1000);
  }

  /** Renew the token on the open connection, and again as long after; a failure is tried again a tenth later. */
  private renewAfter(milliseconds: number, lifeMs = milliseconds): void {
    this.arm("renew", Math.min(milliseconds, LONGEST_TIMER_MS), () => {
      const attempt = this.attempt;
      this.freshToken().then(
        () => {
          if (attempt !== this.attempt || !this.tokenSource || !this.session.token) return;
          this.session.auth(this.session.token);
          this.flush();
          this.renewAfter(lifeMs);
        },
        () => {
          if (attempt === this.attempt) this.renewAfter(lifeMs / 10, lifeMs);
        },
      );
    });
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
      else if (SAVED_SOON.has(event.type)) this.saveSoon();
      else if (event.type === "accepted") this.saveNow();
      else if (event.type === "ended") this.onEnded(event.message);
      else if (event.type === "error" && !event.message) this.onError(event);
      this.tell(event);
    }
  }

  private resumeLater(message: Message, afterMs: number): void {
    this.arm(`later ${message.id}`, afterMs, () => {
      if (message.state === "stalled" || message.state === "sending") this.session.resume(message.id);
      this.flush();
    });
  }

  private onError({ re, error, conversation }: Extract<SessionEvent, { type: "error" }>): void {
    this.lastError = error;
    if (conversation === undefined || !error.retryable || (re !== "subscribe" && re !== "history")) return;
    this.arm(`in ${conversation}`, error.retry_after_ms ?? RESUME_LATER_MS, () => {
      this.session.again(conversation);
      this.flush();
    });
  }

  private onEnded(message: Message): void {
    this.releases.get(message.id)?.();
    this.saveNow();
  }

  private abortWith(signal: AbortSignal | undefined, message: Message): void {
    if (!signal || message.ended) return;
    const abort = (): void => this.cancel(message.id);
    this.releases.get(message.id)?.();
    if (signal.aborted) {
      abort();
      return;
    }
    signal.addEventListener("abort", abort, { once: true });
    this.releases.set(message.id, () => {
      signal.removeEventListener("abort", abort);
      this.releases.delete(message.id);
    });
  }

  private afterRequest(): void {
    this.flush();
    this.saveNow();
  }

  private flush(): void {
    const frames = this.session.outgoing();
    if (frames.length > 0) this.transmit(frames);
  }

  /** Send frames, as many as fit in one WebSocket message each time. */
  private transmit(frames: ClientFrame[]): void {
    const data = this.codec.encode(frames);
    const limit = this.status.welcome?.max_frame_bytes ?? Number.POSITIVE_INFINITY;
    const size = sizeOf(data, limit);
    const [first] = frames;
    if (size <= limit || !first) {
      this.socket?.send(data);
    } else if (frames.length > 1) {
      const half = frames.length >> 1;
      this.transmit(frames.slice(0, half));
      this.transmit(frames.slice(half));
    } else if (first.type === "send") {
      this.refuseOversized(first.id, size, limit);
    } else {
      this.socket?.send(data);
    }
  }

  /** What the server would close the whole connection for is refused here, for this message alone. */
  private refuseOversized(id: string, size: number, limit: number): void {
    const message = `the request takes ${size} bytes, the server accepts ${limit}`;
    const error: ErrorBody = { code: "invalid_frame", class: "permanent", status: 400, message, retryable: false };
    this.emit(this.session.receive({ type: "error", re: "send", id, error }));
  }

  private saveSoon(): void {
    if (!this.timers.has("save")) this.arm("save", SAVE_EVERY_MS, this.saveNow);
  }

  private readonly saveNow = (): void => {
    this.store.save(this.session.save(), this.session.saveConversations());
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

/** The size of a WebSocket message in bytes; of a text only as exactly as `limit` makes necessary. */
function sizeOf(data: string | Uint8Array, limit: number): number {
  if (typeof data !== "string") return data.length;
  return data.length * 3 <= limit ? data.length : utf8(data).length;
}
