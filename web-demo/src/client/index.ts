/** The Tidewire client library. `Session` is the sans-I/O core, `Client` the shell for browsers and Node. */

export { backoffMs, mayReconnect } from "./backoff.ts";
export type { Codec, CodecName } from "./codec.ts";
export { jsonCodec, loadCodec } from "./codec.ts";
export type * from "./frames.ts";
export { newId, uuid7From } from "./ids.ts";
export type { MessageState, SavedMessage } from "./message.ts";
export { Message } from "./message.ts";
export type { SessionEvent } from "./session.ts";
export { Session } from "./session.ts";
export { sha256, utf8 } from "./sha256.ts";
export type { ClientEvent, ClientOptions, Status } from "./socket.ts";
export { Client } from "./socket.ts";
export type { KeyValue } from "./store.ts";
