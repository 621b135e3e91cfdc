/** What a `Session` tells its shell, and the check that a frame is one. */

import type { Message } from "./message.ts";
import type {
  Attempt,
  ConversationFrame,
  Delta,
  ErrorBody,
  HistoryPage,
  Limit,
  MessageNotice,
  ServerFrame,
  Welcome,
} from "./types.ts";

/** Why a message was asked for again on an open connection. */
export type ResyncReason = "gap" | "snapshot" | "mismatch" | "behind" | "missing" | "unanswered" | "lost";

/** What happened, in its order. */
export type SessionEvent =
  | { type: "welcomed"; frame: Welcome }
  /** The message exists: it was admitted now, or existed before (`replay`). */
  | { type: "accepted"; message: Message; replay: boolean }
  /** A target starts to answer. Unless `info.mode` is `continue`, output so far was dropped. */
  | { type: "attempt"; message: Message; info: Attempt }
  /** New output, already applied to the message. */
  | { type: "output"; message: Message; frame: Delta }
  /** All output was replaced (a snapshot), or dropped to be told anew. */
  | { type: "replaced"; message: Message }
  /** Something was missing or wrong; a resume was sent. */
  | { type: "resyncing"; message: Message; reason: ResyncReason }
  /** The server can't tell more of this message now: call `resume` after the delay. */
  | { type: "stalled"; message: Message; error: ErrorBody; afterMs: number | undefined }
  /** Nothing more comes; `message.state` and `message.error` say how it ended. */
  | { type: "ended"; message: Message }
  /** An error that ends nothing: of the connection, or of one frame about a message. */
  | {
      type: "error";
      message: Message | undefined;
      re: string | undefined;
      error: ErrorBody;
      /** What it was about. A refused `subscribe` or `history` that is `retryable` is repeated by `Session.again`. */
      conversation?: string;
    }
  | { type: "goaway"; reason: string; afterMs: number }
  | { type: "quota"; limits: Limit[] }
  /** A subscribed conversation got an entry, or one has ended. Each is told once. */
  | { type: "notice"; frame: MessageNotice }
  /** Something happened to a conversation (`frame.op` says what), or an operation on one was answered. */
  | { type: "conversation"; frame: ConversationFrame }
  | { type: "history"; frame: HistoryPage }
  | { type: "pong"; nonce: string | number | undefined };

/** The server sent something that is not a frame of this protocol. Reconnect; the session stays usable. */
export class MalformedFrame extends Error {
  override name = "MalformedFrame";
}

const REQUIRED: Record<string, string[]> = {
  welcome: ["session", "user", "tier", "heartbeat_seconds", "max_frame_bytes", "resumed", "active"],
  accepted: ["id", "replay", "state"],
  attempt: ["id", "seq", "attempt", "target", "model", "mode"],
  delta: ["id", "after", "seq"],
  snapshot: ["id", "seq", "attempt", "part", "last"],
  done: ["id", "seq", "text_bytes", "text_sha256"],
  failed: ["id", "seq", "error"],
  cancelled: ["id", "seq", "text_bytes", "text_sha256"],
  quota: ["limits"],
  message: ["conversation", "id", "seq"],
  conversation: ["op"],
  history: ["conversation"],
  error: ["error"],
  goaway: ["reconnect_after_ms"],
};

/** Throws `MalformedFrame` if a field is missing that every frame of its type has. */
export function checkFields(frame: ServerFrame): void {
  if (typeof frame?.type !== "string") throw new MalformedFrame("a frame is a map with a `type`");
  const fields = frame as unknown as Record<string, unknown>;
  const missing = REQUIRED[frame.type]?.find((name) => fields[name] === undefined || fields[name] === null);
  if (missing !== undefined) throw new MalformedFrame(`${frame.type}: \`${missing}\` is missing`);
}
