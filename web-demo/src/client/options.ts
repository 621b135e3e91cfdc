/** What a `Client` is made of and what it tells: its options, its status, and what it needs of a platform. */

import type { Codec } from "./codec.ts";
import type { SessionEvent } from "./events.ts";
import type { KeyValue } from "./store.ts";
import type { ServerFrame, Welcome } from "./types.ts";

/** What is needed of a WebSocket. */
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

/** What is needed to keep time. */
export interface Clock {
  /** Milliseconds, from any beginning. */
  now(): number;
  /** As the platform's own, in milliseconds. */
  setTimeout(callback: () => void, milliseconds: number): unknown;
  clearTimeout(timer: never): void;
}

/** The part of `window` and `document` that tells when to look after the connection. */
export interface Surroundings {
  addEventListener(type: string, listener: () => void): void;
  removeEventListener(type: string, listener: () => void): void;
}

/** Gets a fresh token; asked before every connection and shortly before the token expires. */
export type TokenSource = () => string | undefined | Promise<string | undefined>;
/** Opens a connection. */
export type Connect = (url: string, subprotocol: string) => WebSocketLike;

/** What `new Client` takes; only `url` has to be given. */
export interface ClientOptions {
  /** Of the server's socket: `wss://chat.example.com/v1/ws`. */
  url: string;
  /** A JWT, an API key, or a function that gets one. */
  token?: string | TokenSource;
  /** `jsonCodec` unless given. */
  codec?: Codec;
  /** Where the open messages are kept over a reload: `sessionStorage`, or the like. */
  storage?: KeyValue;
  /** The key in `storage`, for several clients on one page. */
  storageKey?: string;
  /** The platform's own unless given; Node 20 has none, the package `ws` is one. */
  WebSocket?: new (
    url: string,
    subprotocol: string,
  ) => unknown;
  /** In place of `WebSocket`: whatever opens a connection, for instance `sharedTabs`. */
  connect?: Connect;
  /** Told of every frame once it was applied; for who hands frames on. */
  onFrame?: (frame: ServerFrame) => void;
  /** For tests; the platform's own unless given. */
  clock?: Clock;
  /** In [0, 1): spreads the reconnects. */
  random?: () => number;
  /** Those of the page unless given; null for none. */
  window?: Surroundings | null;
  document?: PageState | null;
}

/** `document`, as far as it tells whether the page is looked at. */
export type PageState = Surroundings & { readonly visibilityState: string };

/** How a message is followed. */
export interface FollowOptions {
  /** Cancels the message, at the server too. */
  signal?: AbortSignal | undefined;
}

/** `waiting`: until `retryAt`; `stopped`: closed with a code that reconnecting would not mend; `closed`: by us. */
export type Phase = "connecting" | "open" | "waiting" | "stopped" | "closed";

/** How the connection is. Every change is told as a `status` event. */
export interface Status {
  /** What it does now. */
  phase: Phase;
  /** When the next try to connect begins, by the client's clock, in milliseconds. */
  retryAt: number | undefined;
  /** Of the last heartbeat, in milliseconds. */
  roundTripMs: number | undefined;
  /** Why it is `stopped`. */
  closeCode: number | undefined;
  /** How many connections came to `welcome`. */
  connections: number;
  /** What the server said of itself and the user, last: `user`, `tier`, `limits`, `node`, … */
  welcome: Welcome | undefined;
}

/** Everything a client tells. */
export type ClientEvent = SessionEvent | { type: "status"; status: Status };
