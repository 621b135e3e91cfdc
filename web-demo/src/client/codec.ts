/** How frames become WebSocket messages. JSON is here; msgpack is loaded only when it is asked for. */

import type { ClientFrame, ServerFrame } from "./frames.ts";
import { SUBPROTOCOL_JSON } from "./frames.ts";

export interface Codec {
  readonly subprotocol: string;
  encode(frames: ClientFrame[]): string | Uint8Array<ArrayBuffer>;
  /** The frames of one WebSocket message. Throws on what is not this codec. */
  decode(data: string | ArrayBuffer): ServerFrame[];
}

/** One frame travels as a map, several as an array of maps. */
export function envelope<T>(frames: T[]): T | T[] {
  return frames.length === 1 ? (frames[0] as T) : frames;
}

export function framesOf(value: unknown): ServerFrame[] {
  return (Array.isArray(value) ? value : [value]) as ServerFrame[];
}

export const jsonCodec: Codec = {
  subprotocol: SUBPROTOCOL_JSON,
  encode: (frames) => JSON.stringify(envelope(frames)),
  decode(data) {
    if (typeof data !== "string") throw new TypeError("JSON frames travel in text messages");
    return framesOf(JSON.parse(data));
  },
};

export type CodecName = "json" | "msgpack";

export async function loadCodec(name: CodecName): Promise<Codec> {
  return name === "json" ? jsonCodec : (await import("./msgpack.ts")).msgpackCodec;
}
