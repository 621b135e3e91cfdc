/** The codec the user chose; msgpack is loaded only when it is asked for. */

import { type Codec, jsonCodec } from "../client/index.ts";

export type CodecName = "json" | "msgpack";

export async function loadCodec(name: CodecName): Promise<Codec> {
  return name === "json" ? jsonCodec : (await import("../client/msgpack.ts")).msgpackCodec;
}
