/** The conformance vectors of the protocol, in both codecs. */

import { readdirSync, readFileSync } from "node:fs";
import { decode, encode } from "@msgpack/msgpack";
import { describe, expect, test } from "vitest";
import { type Codec, jsonCodec } from "../src/client/codec.ts";
import type { Message } from "../src/client/message.ts";
import { msgpackCodec } from "../src/client/msgpack.ts";
import { Session } from "../src/client/session.ts";
import type { ClientFrame, ConversationRequest, SendRequest } from "../src/client/types.ts";

type Frame = Record<string, unknown>;

interface Step {
  do?:
    | ("connect" | "disconnect" | "send" | "resume" | "cancel" | "detach" | "retry" | "ping" | "forget")
    | ("subscribe" | "unsubscribe" | "again" | "history" | "conversation");
  id?: string;
  request?: Omit<SendRequest, "id">;
  after?: number | string;
  text?: string;
  nonce?: string | number;
  server?: Frame[];
  array?: boolean;
  out?: Frame[];
  conversation?: string;
  before?: string;
  limit?: number;
  op?: ConversationRequest["op"];
  fields?: Frame;
  /** Frames of conversations that the application is told. */
  told?: Frame[];
}

interface Vector {
  name: string;
  description: string;
  steps: Step[];
  final: Record<string, Frame>;
  /** The cursor of each. */
  conversations?: Record<string, number | null>;
}

/** What the server's side of a codec does: turn its frames into a WebSocket message, and the client's into frames. */
const WIRES: Record<
  string,
  { codec: Codec; encode(value: unknown): string | ArrayBuffer; decode(data: never): unknown }
> = {
  json: { codec: jsonCodec, encode: (value) => JSON.stringify(value), decode: (data: string) => JSON.parse(data) },
  msgpack: {
    codec: msgpackCodec,
    encode: (value) => encode(value).slice().buffer,
    decode: (data: Uint8Array) => decode(data),
  },
};

const directory = new URL("../../protocol/vectors/", import.meta.url);
const vectors: Vector[] = readdirSync(directory, { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".json"))
  .sort()
  .map((name) => JSON.parse(readFileSync(new URL(name, directory), "utf8")));

function act(session: Session, step: Step): ClientFrame[] {
  const id = step.id ?? "";
  const conversation = step.conversation ?? "";
  switch (step.do) {
    case "connect":
      return [session.hello()];
    case "disconnect":
      session.disconnected();
      break;
    case "send":
      session.send({ id, ...step.request });
      break;
    case "resume":
      session.resume(id, {
        ...(step.after !== undefined && { after: Number(step.after) }),
        ...(step.text !== undefined && { text: step.text }),
      });
      break;
    case "ping":
      session.ping(step.nonce ?? 0);
      break;
    case "subscribe":
      session.subscribe(conversation, Number(step.after ?? 0));
      break;
    case "unsubscribe":
    case "again":
      session[step.do](conversation);
      break;
    case "history":
      session.history(conversation, {
        ...(step.before !== undefined && { before: step.before }),
        ...(step.after !== undefined && { after: String(step.after) }),
        ...(step.limit !== undefined && { limit: step.limit }),
      });
      break;
    case "conversation":
      session.conversation({
        op: step.op ?? "get",
        ...(step.conversation !== undefined && { conversation }),
        ...step.fields,
      });
      break;
    default:
      if (step.do) session[step.do](id);
  }
  return session.outgoing();
}

function comparable(frame: Frame): Frame {
  if (frame.type !== "hello") return frame;
  const { client: _client, token: _token, ...rest } = frame;
  return { resume: [], ...rest };
}

function outcome(message: Message): Frame {
  return {
    state: message.state === "resyncing" || message.state === "stalled" ? "following" : message.state,
    text: message.text,
    reasoning: message.reasoning,
    tool_calls: message.toolCalls.map(({ index: _index, ...call }) => call),
    seq: message.cursor,
    attempt: message.attempt,
    finish_reason: message.end?.type === "done" ? message.end.finish_reason : undefined,
    partial: message.partial,
    error_code: message.error?.code,
  };
}

describe.each(Object.entries(WIRES))("in %s", (_name, wire) => {
  test.each(vectors.map((vector) => [vector.name, vector] as const))("%s", (_title, vector) => {
    const session = new Session();
    vector.steps.forEach((step, number) => {
      const sent: ClientFrame[] = step.server ? [] : act(session, step);
      const told: Frame[] = [];
      const batches = step.server ? (step.array ? [step.server] : step.server.map((frame) => [frame])) : [];
      for (const batch of batches) {
        const data = wire.encode(step.array ? batch : batch[0]);
        for (const frame of wire.codec.decode(data)) {
          for (const event of session.receive(frame)) {
            if (event.type === "notice" || event.type === "history" || event.type === "conversation") {
              told.push(event.frame as unknown as Frame);
            }
          }
        }
        sent.push(...session.outgoing());
      }
      const onTheWire = sent.map((frame) => wire.decode(wire.codec.encode([frame]) as never) as Frame);
      expect(onTheWire.map(comparable), `step ${number}`).toEqual((step.out ?? []).map(comparable));
      expect(told, `told in step ${number}`).toEqual(step.told ?? []);
    });
    for (const [name, cursor] of Object.entries(vector.conversations ?? {})) {
      expect(session.subscribed(name) ?? null, name).toBe(cursor);
    }
    expect([...session.messages.keys()].sort()).toEqual(Object.keys(vector.final).sort());
    for (const [id, wanted] of Object.entries(vector.final)) {
      const message = session.messages.get(id);
      expect(message, id).toBeDefined();
      expect(outcome(message as Message), id).toMatchObject(wanted);
    }
  });
});

test("there are vectors to pass", () => {
  expect(vectors.length).toBeGreaterThan(90);
});
