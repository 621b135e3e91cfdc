/** The msgpack codec: the same maps, in binary messages. Needs the optional package `@msgpack/msgpack`. */

import { decode, Encoder } from "@msgpack/msgpack";
import type { Codec } from "./codec.ts";
import { envelope, framesOf } from "./codec.ts";

const encoder = new Encoder({ ignoreUndefined: true });

/** Frames as msgpack, in binary messages. Throws `Error` of some kind on anything else. */
export const msgpackCodec: Codec = {
  subprotocol: "tidewire.v1.msgpack",
  encode: (frames) => encoder.encode(envelope(frames)),
  decode(data) {
    if (typeof data === "string") throw new TypeError("msgpack frames travel in binary messages");
    return framesOf(decode(data));
  },
};
