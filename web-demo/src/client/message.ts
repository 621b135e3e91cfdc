/**
 * What a client holds about one message, and the table of its states.
 *
 * The same machine as `protocol/client/message.py`: a message is asked for (`sending`), then followed. While it is
 * followed each frame either continues the cursor and is applied, or the client asks again (`resyncing`). What the
 * table has no row for is a frame that lost a race; it changes nothing.
 */

import { sha256, utf8 } from "./sha256.ts";
import type { Attempt, EndFrame, ErrorBody, Failed, SendRequest, Snapshot, ToolCall, Usage } from "./types.ts";

/** How often the text may contradict its hash before the client gives up. */
export const MAX_MISMATCHES = 3;
/** How often a resume from one cursor may be answered with another gap before the client gives up. */
export const MAX_GAPS = 5;

/**
 * `stalled`: the server can't tell more just now. `detached`: not followed, on our own wish. `refused`: never started,
 * the id is free again. `lost`: the server does not know it. `broken`: what the server tells contradicts itself.
 */
export type MessageState =
  | "sending"
  | "following"
  | "resyncing"
  | "stalled"
  | "detached"
  | "done"
  | "failed"
  | "cancelled"
  | "refused"
  | "lost"
  | "broken";

/** What moves a message from one state to another. */
export type Trigger =
  | "accept"
  | "data"
  | "gap"
  | "reconnect"
  | "stall"
  | "detach"
  | "resume"
  | "retry"
  | "ask_anew"
  | "done"
  | "fail"
  | "cancel"
  | "refuse"
  | "lose"
  | "break";

type Row = Partial<Record<Trigger, MessageState>>;

const ENDS: Row = { done: "done", fail: "failed", cancel: "cancelled", lose: "lost", break: "broken" };
const HEARD: Row = { accept: "following", data: "following", detach: "detached", ...ENDS };
const AGAIN: Row = { reconnect: "resyncing", resume: "resyncing", stall: "stalled", ask_anew: "sending" };

/** Every transition there is. */
export const TRANSITIONS: Record<MessageState, Row> = {
  sending: { ...HEARD, gap: "resyncing", refuse: "refused" },
  following: { ...HEARD, ...AGAIN, gap: "resyncing", refuse: "refused" },
  resyncing: { ...HEARD, ...AGAIN, refuse: "refused" },
  stalled: { ...HEARD, ...AGAIN },
  detached: { resume: "resyncing" },
  done: {},
  failed: { retry: "sending" },
  cancelled: {},
  refused: { retry: "sending" },
  lost: {},
  broken: {},
};

const ENDED: ReadonlySet<MessageState> = new Set(["done", "failed", "cancelled", "refused", "lost", "broken"]);

/** What must be kept of an open message to go on with it after a reload. */
export interface SavedMessage {
  id: string;
  cursor: number;
  text: string;
  reasoning: string;
  /** The server is known to have it, so it is resumed and not sent again. */
  acknowledged: boolean;
  request?: SendRequest;
  reopenedAt?: number;
  made?: string;
  cancelRequested?: boolean;
}

/** One message as the client has it. Read freely; only `Session` writes. */
export class Message {
  /** Chosen by the client that asked; no two messages of a user share one. */
  readonly id: string;
  /** What was asked, so that it can be asked again under the same id; undefined if another client asked. */
  readonly request: SendRequest | undefined;
  /** Where it stands in the table of states. */
  state: MessageState;
  /** As the server last told it: `queued`, `streaming`, … ; empty before it did. */
  serverState = "";
  /** Its place among what waits, from 1; undefined if it does not wait. */
  queuePosition: number | undefined;
  /** `seq` of the last event applied; 0 = none. With the id, all that a resume needs. */
  cursor = 0;
  /** The visible text that stands. */
  text = "";
  /** The reasoning that stands, of models that tell it. */
  reasoning = "";
  /** The tool calls that stand, merged, by `index`; their arguments may still grow. */
  toolCalls: ToolCall[] = [];
  /** Number of the attempt whose output this is; 0 = none yet. */
  attempt = 0;
  /** Those attempts that were seen. */
  attempts: Attempt[] = [];
  /** Tokens, once it has ended. */
  usage: Usage | undefined;
  /** Why it failed, was refused or lost. */
  error: ErrorBody | undefined;
  /** Whether text stands although the message failed. */
  partial = false;
  /** The `done`, `failed` or `cancelled` frame. */
  end: EndFrame | undefined;
  cancelRequested = false;
  /** Rises whenever earlier output is withdrawn or replaced, so that a reader knows to start over. */
  generation = 0;
  /** How often this client had to ask again on an open connection; 0 on a healthy one. */
  resyncs = 0;
  /** How often it was picked up on another connection. */
  reconnects = 0;

  /** It was given to a connection, so the server may have it. */
  transmitted = false;
  /** It was given to a connection that broke before the server answered. */
  uncertain = false;
  /** How it ended before a retry. */
  earlierEnd: Failed | undefined;
  /** `hello` asked the server about it, and the answer is not in yet. */
  probed = false;
  /** The last jump of the journal that the server was asked about. */
  askedAbout: { cursor: number; seq: number } | undefined;
  gapAt = -1;
  gaps = 0;
  mismatches = 0;
  pongMark: { cursor: number; answered: boolean } | undefined;
  unansweredPongs = 0;
  /** `seq` of the failure that a retry reopened; -1 = none. */
  reopenedAt = -1;
  /** The `generation` that the server told: another one means that it lost the message and made it anew. */
  made: string | undefined;
  /** How often the server lost it and it was asked for anew. */
  askedAnew = 0;
  parts: Snapshot[] | undefined;

  constructor(id: string, request: SendRequest | undefined, state: MessageState) {
    this.id = id;
    this.request = request;
    this.state = state;
  }

  /** Whether nothing more is to come. */
  get ended(): boolean {
    return ENDED.has(this.state);
  }

  /** Whether `Session.retry` may help: it failed or was refused for a reason that passes, and we know the request. */
  get retryable(): boolean {
    return TRANSITIONS[this.state].retry !== undefined && this.error?.retryable === true && this.request !== undefined;
  }

  /** Go where the table says; false, and nothing changes, if it has no row for this. */
  move(trigger: Trigger): boolean {
    const state = TRANSITIONS[this.state][trigger];
    if (state === undefined) return false;
    this.state = state;
    return true;
  }

  /** Whether the visible text, in UTF-8, has so many bytes and this SHA-256 in lower-case hexadecimal. */
  matches(textBytes: number, textSha256: string): boolean {
    const bytes = utf8(this.text);
    return bytes.length === textBytes && sha256(bytes) === textSha256;
  }

  /** All output was withdrawn. */
  dropOutput(): void {
    this.generation++;
    this.text = "";
    this.reasoning = "";
    this.toolCalls = [];
  }

  /** More output, behind what stands. */
  add(output: {
    text?: string | null;
    reasoning?: string | null;
    tool_calls?: Record<string, unknown>[] | null;
  }): void {
    this.text += output.text ?? "";
    this.reasoning += output.reasoning ?? "";
    output.tool_calls?.forEach((piece: ToolCall, position) => {
      this.mergeToolCall(piece, piece.index ?? position);
    });
  }

  /** Put the parts of a snapshot in the place of all output. */
  replace(parts: Snapshot[]): void {
    this.dropOutput();
    for (const part of parts) this.add(part);
    this.parts = undefined;
    this.cursor = parts[0]?.seq ?? this.cursor;
    this.attempt = parts[0]?.attempt ?? this.attempt;
  }

  /** What a later run needs to go on with it. */
  save(): SavedMessage {
    const { id, request, text, reasoning, state } = this;
    // Tool calls are not kept: what has some is told whole again.
    const whole = this.toolCalls.length > 0 ? { cursor: 0, text: "", reasoning: "" } : {};
    return {
      ...{ id, cursor: this.cursor, text, reasoning, acknowledged: state !== "sending", ...whole },
      ...(request && { request }),
      ...(this.reopenedAt >= 0 && { reopenedAt: this.reopenedAt }),
      ...(this.made !== undefined && { made: this.made }),
      ...(this.cancelRequested && { cancelRequested: true }),
    };
  }

  /** What an earlier run saved, as it stood then. */
  static restore(saved: SavedMessage): Message {
    const message = new Message(saved.id, saved.request, saved.acknowledged ? "following" : "sending");
    message.cursor = saved.cursor;
    message.text = saved.text;
    message.reasoning = saved.reasoning;
    message.reopenedAt = saved.reopenedAt ?? -1;
    message.made = saved.made;
    message.cancelRequested = saved.cancelRequested ?? false;
    message.transmitted = true;
    return message;
  }

  private mergeToolCall(piece: ToolCall, index: number): void {
    let call = this.toolCalls.find((known) => known.index === index);
    if (!call) {
      call = { index };
      this.toolCalls.push(call);
      this.toolCalls.sort((a, b) => (a.index ?? 0) - (b.index ?? 0));
    }
    if (piece.id != null) call.id = piece.id;
    if (piece.type != null) call.type = piece.type;
    if (piece.function == null) return;
    call.function = {
      name: piece.function.name ?? call.function?.name ?? "",
      arguments: (call.function?.arguments ?? "") + (piece.function.arguments ?? ""),
    };
  }
}
