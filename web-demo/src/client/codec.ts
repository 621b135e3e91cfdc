/** How frames become WebSocket messages. JSON is here, msgpack in `msgpack.ts`, so that nobody pays for it unasked. */

import type { ClientFrame, ServerFrame, Subprotocol } from "./types.ts";

/** A form that frames travel in. */
export interface Codec {
  /** What is offered in the handshake. */
  readonly subprotocol: Subprotocol;
  /** One WebSocket message with these frames, of which there is at least one. */
  encode(frames: ClientFrame[]): string | Uint8Array<ArrayBuffer>;
  /** The frames of one WebSocket message. Throws on what is not this codec. */
  decode(data: string | ArrayBuffer): ServerFrame[];
}

/** One frame travels as a map, several as an array of maps. */
export function envelope<T>(frames: T[]): T | T[] {
  return frames.length === 1 ? (frames[0] as T) : frames;
}

/** The other way around; what is in the frames is not checked. */
export function framesOf(value: unknown): ServerFrame[] {
  return (Array.isArray(value) ? value : [value]) as ServerFrame[];
}

/** Frames as JSON, in text messages. Throws `TypeError` or `SyntaxError` on anything else. */
export const jsonCodec: Codec = {
  subprotocol: "tidewire.v1.json",
  encode: (frames) => JSON.stringify(envelope(frames)),
  decode(data) {
    if (typeof data !== "string") throw new TypeError("JSON frames travel in text messages");
    return framesOf(JSON.parse(data));
  },
};
