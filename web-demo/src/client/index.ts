/** The Tidewire client library. `Session` is the sans-I/O core, `Client` the shell for browsers and Node. */

export type { Follower, Piece } from "./answer.ts";
export { Answer } from "./answer.ts";
export { backoffMs, mayReconnect } from "./backoff.ts";
export type { Codec } from "./codec.ts";
export { jsonCodec } from "./codec.ts";
export * from "./errors.ts";
export { newId, uuid7From } from "./ids.ts";
export type { MessageState, SavedMessage } from "./message.ts";
export { Message } from "./message.ts";
export type {
  ClientEvent,
  ClientOptions,
  Clock,
  Connect,
  FollowOptions,
  Phase,
  Status,
  Surroundings,
  TokenSource,
  WebSocketLike,
} from "./options.ts";
export type { Kept, PageOptions, ResyncReason, SessionEvent } from "./session.ts";
export { MalformedFrame, Session } from "./session.ts";
export { sha256, utf8 } from "./sha256.ts";
export { Client } from "./socket.ts";
export type { KeyValue } from "./store.ts";
export type * from "./types.ts";
