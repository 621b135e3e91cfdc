/**
 * The client side of the protocol, without I/O: frames in, events out, frames to send. No socket, clock, dice or DOM.
 *
 * A shell opens a WebSocket, sends `hello()`, hands every decoded frame to `receive` and sends what `outgoing()`
 * returns after every call that may have queued something. When the socket is gone it calls `disconnected()` and
 * starts over with the same session. The rules are those of `protocol/client/session.py`, and of protocol/vectors.
 */

import { MAX_GAPS, MAX_MISMATCHES, Message, type SavedMessage, type Trigger } from "./message.ts";
import type {
  Accepted,
  Attempt,
  Cancelled,
  ClientFrame,
  ConversationFrame,
  ConversationRequest,
  Delta,
  Done,
  EndFrame,
  ErrorBody,
  ErrorFrame,
  Failed,
  Goaway,
  Hello,
  History,
  HistoryPage,
  Limit,
  MessageHead,
  MessageNotice,
  Pong,
  SendRequest,
  ServerFrame,
  Snapshot,
  Welcome,
} from "./types.ts";

export const CLIENT_NAME = "tidewire-web";
export const CLIENT_VERSION = "1";
/** One `hello` resumes at most so many messages; the others follow by frames of their own. */
const MAX_RESUMES_PER_HELLO = 256;
/** A takeover continues the journal at least so many numbers ahead; a smaller hole is never a jump. */
const TAKEOVER_JUMP = 2 ** 20;
/** Refusals that don't tell whether the same request, sent on an earlier connection, was started. */
const UNPROVEN = new Set(["store_unavailable", "draining", "internal", "rate_limited", "too_many_messages"]);
/** After so many heartbeats a request without any answer is sent again, under its id. */
const UNANSWERED_PONGS = 3;
/** How often a message that the server lost is asked for anew before it is given up as `lost`. */
const MAX_ASKED_ANEW = 3;
/** So many ids of forgotten messages are remembered, so that a late frame does not bring one back. */
const MAX_FORGOTTEN = 1024;

/** Every other `op` of a `conversation` frame with a `seq` is an event of the log, also one that is not known here. */
const CONVERSATION_REQUESTS = new Set(
  "create list get rename title delete choose pin unpin waiting answer part".split(" "),
);

export type ResyncReason = "gap" | "snapshot" | "mismatch" | "behind" | "missing" | "unanswered" | "lost";

/** What an earlier run kept of a message. */
export interface Kept {
  after?: number;
  text?: string;
  reasoning?: string;
}

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

export class Session {
  /** Goes out with the next `hello`. */
  token: string | undefined;
  client = { name: CLIENT_NAME, version: CLIENT_VERSION };
  /** Every message asked for or followed and not yet forgotten, by id. */
  readonly messages = new Map<string, Message>();
  /** Whether `welcome` arrived on the present connection. */
  open = false;
  /** The server said `goaway`: what is asked for now waits for the next connection. */
  draining = false;

  private queue: ClientFrame[] = [];
  /** Subscribed conversation → the last `seq` of its log that was told. */
  private readonly conversations = new Map<string, number>();
  /** Conversations whose `subscribe` was sent on the present connection and not answered yet. */
  private readonly askedFor = new Set<string>();
  /** Operations on conversations that were asked for without a connection. */
  private waiting: ClientFrame[] = [];
  private readonly forgotten = new Set<string>();
  private pages: History[] = [];

  /** The messages of which more is to come, on this connection or a later one. */
  get unfinished(): Message[] {
    return [...this.messages.values()].filter((message) => !message.ended && message.state !== "detached");
  }

  // --- what the client wants -----------------------------------------------------------------------------------------

  /** The first frame of a new connection, with the resume points of up to 256 open messages. */
  hello(): Hello {
    const points: { id: string; after: number }[] = [];
    for (const message of this.messages.values()) {
      message.probed = false;
      if (message.state === "sending") {
        if (!message.transmitted || message.reopenedAt >= 0) continue;
      } else if (!message.move("reconnect")) {
        continue;
      }
      if (points.length >= MAX_RESUMES_PER_HELLO) continue;
      message.probed = true;
      points.push({ id: message.id, after: message.cursor });
    }
    return {
      type: "hello",
      client: this.client,
      ...(this.token !== undefined && { token: this.token }),
      ...(points.length > 0 && { resume: points }),
    };
  }

  /** Ask for a message. Throws if this session already has one of that id. */
  send(request: SendRequest): Message {
    if (this.messages.has(request.id)) throw new Error(`message ${request.id} was asked for before`);
    const message = new Message(request.id, request, "sending");
    this.messages.set(message.id, message);
    this.queueSend(message);
    return message;
  }

  /** Ask again for a refused message, or reopen one that failed for now. False if it is in no such state. */
  retry(id: string): boolean {
    const message = this.messages.get(id);
    if (!message?.request || (message.state !== "refused" && message.state !== "failed")) return false;
    if (message.state === "failed") message.reopenedAt = message.cursor;
    message.earlierEnd = message.end?.type === "failed" ? message.end : undefined;
    message.move("retry");
    message.error = message.end = undefined;
    message.transmitted = message.cancelRequested = false;
    this.queueSend(message);
    return true;
  }

  /**
   * Follow a message: again (then from its cursor), or one that is new to this session. For a new one `kept` is what
   * an earlier run kept of it; by default it is told whole.
   */
  resume(id: string, kept: Kept = {}): Message {
    const known = this.messages.get(id);
    if (known) {
      if (known.move("resume")) this.queueResume(known);
      else if (known.state === "sending" && known.transmitted) this.queueSend(known);
      return known;
    }
    const message = new Message(id, undefined, "resyncing");
    message.cursor = kept.after ?? 0;
    message.add(kept);
    this.messages.set(id, message);
    this.queueResume(message);
    return message;
  }

  /** Stop following; the message goes on. False if it isn't followed. */
  detach(id: string): boolean {
    const message = this.messages.get(id);
    if (!message?.move("detach")) return false;
    message.parts = undefined;
    this.put({ type: "detach", id });
    return true;
  }

  /** Stop generating. The receipt is an `ended` later; at once, if the request never went out. */
  cancel(id: string): SessionEvent[] {
    const message = this.messages.get(id);
    if (!message || message.ended) return [];
    message.cancelRequested = true;
    if (message.state === "sending" && !message.transmitted) {
      this.queue = this.queue.filter((frame) => !(frame.type === "send" && frame.id === id));
      message.move("cancel");
      return [{ type: "ended", message }];
    }
    this.put({ type: "cancel", id });
    return [];
  }

  /** Drop an ended or detached message from memory; frames about it are ignored from now on. */
  forget(id: string): void {
    this.messages.delete(id);
    if (this.conversations.size === 0) return;
    this.forgotten.add(id);
    if (this.forgotten.size > MAX_FORGOTTEN) this.forgotten.delete(this.forgotten.values().next().value as string);
  }

  /** Ask for a `pong`, which also tells the heads of all open messages. */
  ping(nonce: string | number): void {
    this.put({ type: "ping", nonce });
  }

  /** Renew the credentials on the open connection and for later ones. */
  auth(token: string): void {
    this.token = token;
    this.put({ type: "auth", token });
  }

  /**
   * Follow every message of a conversation, from any device, on this and later connections. `after` is the `seq` of the
   * last page of its history, or of the last event that was kept; 0: from the beginning.
   */
  subscribe(conversation: string, after = 0): void {
    this.conversations.set(conversation, after);
    this.queueSubscribe(conversation);
  }

  /** Stop following a conversation; late events of it are not told. */
  unsubscribe(conversation: string): void {
    this.dropConversation(conversation);
    this.put({ type: "unsubscribe", conversation });
  }

  /** `seq` of the last event that was told of a conversation; undefined if it is not subscribed to. */
  subscribed(conversation: string): number | undefined {
    return this.conversations.get(conversation);
  }

  /** Ask again for what was refused for now: the subscription, and pages that did not come. */
  again(conversation: string): void {
    if (this.conversations.has(conversation)) this.queueSubscribe(conversation);
    for (const page of this.pages) if (page.conversation === conversation) this.put(page);
  }

  /** Ask for a page of a conversation; asked again on a new connection until it came. */
  history(conversation: string, options: { before?: string; after?: string; limit?: number } = {}): void {
    const frame: History = { type: "history", conversation, limit: 50, ...options };
    this.pages.push(frame);
    this.put(frame);
  }

  /**
   * One operation on conversations (`create`, `list`, `rename`, …); the answer is a `conversation` event. Without a
   * connection it waits for the next one. One that was sent and not answered is not repeated: whether it was done is
   * seen in the conversation's events.
   */
  conversation(request: Omit<ConversationRequest, "type">): void {
    (this.open ? this.queue : this.waiting).push({ type: "conversation", ...request });
  }

  /** Everything a later session needs to go on with the open messages. */
  save(): SavedMessage[] {
    return this.unfinished.map((message) => message.save());
  }

  /** Take over what an earlier session saved. Call before `hello`. */
  restore(saved: SavedMessage[]): void {
    for (const entry of saved) {
      if (!this.messages.has(entry.id)) this.messages.set(entry.id, Message.restore(entry));
    }
  }

  // --- what the connection does --------------------------------------------------------------------------------------

  /** Frames to send now, in order; each is returned once. Empty before `welcome`. */
  outgoing(): ClientFrame[] {
    if (!this.open) return [];
    const frames = this.queue;
    this.queue = [];
    for (const frame of frames) {
      const message = frame.type === "send" ? this.messages.get(frame.id) : undefined;
      if (message) message.transmitted = true;
    }
    return frames;
  }

  /**
   * Apply one frame of the server. Throws `MalformedFrame`. Frames of unknown type, and those about messages that are
   * unknown or over, change nothing.
   */
  receive(frame: ServerFrame): SessionEvent[] {
    checkFields(frame);
    switch (frame.type) {
      case "delta":
        return this.onDelta(frame);
      case "accepted":
        return this.onAccepted(frame);
      case "attempt":
        return this.onAttempt(frame);
      case "snapshot":
        return this.onSnapshot(frame);
      case "done":
      case "cancelled":
        return this.onVerifiedEnd(frame);
      case "failed":
        return this.onFailed(frame);
      case "error":
        return this.onError(frame);
      case "welcome":
        return this.onWelcome(frame);
      case "pong":
        return this.onPong(frame);
      case "goaway":
        return this.onGoaway(frame);
      case "quota":
        return [{ type: "quota", limits: frame.limits }];
      case "message":
        return this.isNext(frame.conversation, frame.seq ?? 0) ? [{ type: "notice", frame }] : [];
      case "conversation":
        return this.onConversation(frame);
      case "history":
        return this.onHistory(frame);
      default:
        return [];
    }
  }

  /** The connection is gone: forget what belonged to it. What stands of the messages is kept. */
  disconnected(): void {
    this.open = false;
    this.queue = [];
    this.askedFor.clear();
    for (const message of this.messages.values()) {
      message.parts = message.pongMark = undefined;
      message.unansweredPongs = 0;
      message.uncertain = message.state === "sending" && message.transmitted;
    }
  }

  // --- output --------------------------------------------------------------------------------------------------------

  private onDelta(frame: Delta): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message) return [];
    if (frame.after !== message.cursor || !message.move("data")) {
      return frame.seq <= message.cursor ? [] : this.resync(message, "gap");
    }
    message.cursor = frame.seq;
    message.add(frame);
    return [{ type: "output", message, frame }];
  }

  private onAttempt(frame: Attempt): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message || frame.seq <= message.cursor) return [];
    if (frame.mode !== "continue") message.dropOutput();
    else if (this.isHole(message, frame)) return this.resync(message, "gap");
    message.move("data");
    message.cursor = frame.seq;
    message.attempt = frame.attempt;
    message.attempts.push(frame);
    message.serverState = "streaming";
    return [{ type: "attempt", message, info: frame }];
  }

  private onSnapshot(frame: Snapshot): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message) return [];
    if (frame.part === 1) {
      message.move("data");
      message.parts = [];
    }
    const parts = message.parts;
    if (!parts || frame.part !== parts.length + 1 || (parts[0] ?? frame).seq !== frame.seq) {
      message.parts = undefined;
      return this.resync(message, "snapshot");
    }
    parts.push(frame);
    if (!frame.last) return [];
    message.replace(parts);
    return [{ type: "replaced", message }];
  }

  // --- gaps ----------------------------------------------------------------------------------------------------------

  /** Whether events are missing before `frame`; without its `after`, a jump is believed once it was asked about. */
  private isHole(message: Message, frame: Attempt | EndFrame, verified = false): boolean {
    if (frame.after != null) return frame.after !== message.cursor;
    const missing = frame.seq - message.cursor - 1;
    if (missing <= 0) return false;
    const before = message.askedAbout;
    message.askedAbout = { cursor: message.cursor, seq: frame.seq };
    const asked = before?.cursor === message.cursor && before.seq === frame.seq && message.state === "following";
    return !(asked && (verified || missing >= TAKEOVER_JUMP));
  }

  /** Ask for everything after the cursor, once until it is answered. */
  private resync(message: Message, reason: ResyncReason): SessionEvent[] {
    if (message.gapAt !== message.cursor) {
      message.gapAt = message.cursor;
      message.gaps = 0;
    }
    if (!message.move("gap")) return [];
    if (++message.gaps > MAX_GAPS) return this.breakOff(message, "the server keeps leaving out events");
    message.resyncs++;
    this.queueResume(message);
    return [{ type: "resyncing", message, reason }];
  }

  /** The text is not what its hash says: drop it and ask for everything. */
  private startOver(message: Message): SessionEvent[] {
    if (++message.mismatches > MAX_MISMATCHES) return this.breakOff(message, "the text does not match its hash");
    message.dropOutput();
    message.cursor = 0;
    return [...this.resumeNow(message, "mismatch"), { type: "replaced", message }];
  }

  private breakOff(message: Message, why: string): SessionEvent[] {
    this.put({ type: "detach", id: message.id });
    const error: ErrorBody = {
      code: "text_unverified",
      class: "permanent",
      status: 502,
      message: why,
      retryable: false,
    };
    return this.failHere(message, "break", error);
  }

  // --- ends ----------------------------------------------------------------------------------------------------------

  private onVerifiedEnd(frame: Done | Cancelled): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message || frame.seq <= message.reopenedAt) return [];
    const verified = message.matches(frame.text_bytes, frame.text_sha256);
    if (this.isHole(message, frame, verified)) return this.resync(message, "gap");
    if (verified) return this.end(message, frame.type === "done" ? "done" : "cancel", frame);
    return message.state === "resyncing" ? [] : this.startOver(message);
  }

  private onFailed(frame: Failed): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message || frame.seq <= message.reopenedAt) return [];
    return this.isHole(message, frame) ? this.resync(message, "gap") : this.fail(message, frame);
  }

  private fail(message: Message, frame: EndFrame & { type: "failed" }): SessionEvent[] {
    message.error = frame.error;
    message.partial = frame.partial ?? false;
    return this.end(message, "fail", frame);
  }

  private end(message: Message, trigger: Trigger, frame: EndFrame): SessionEvent[] {
    message.move(trigger);
    message.cursor = frame.seq;
    message.serverState = frame.type;
    message.usage = frame.usage;
    message.end = frame;
    message.parts = undefined;
    return [{ type: "ended", message }];
  }

  // --- acceptance and errors -----------------------------------------------------------------------------------------

  private onAccepted(frame: Accepted): SessionEvent[] {
    const message = this.live(frame.id);
    if (!message) return [];
    message.move("accept");
    message.pongMark = undefined;
    message.unansweredPongs = 0;
    message.serverState = frame.state;
    message.queuePosition = frame.queue_position ?? undefined;
    const events: SessionEvent[] = [{ type: "accepted", message, replay: frame.replay }];
    events.push(...this.sameOrAnew(message, frame));
    if (frame.state === "failed") {
      message.reopenedAt = -1;
      const earlier = message.earlierEnd;
      if (earlier && frame.seq === message.cursor) events.push(...this.fail(message, earlier)); // Over, as it was.
    }
    return events;
  }

  /** Whether what the server tells the head of is what we followed; else its events begin anew at 1. */
  private sameOrAnew(message: Message, head: { seq: number; generation?: string | null }): SessionEvent[] {
    const known = message.made;
    message.made = head.generation ?? known;
    if (head.seq >= message.reopenedAt && (known === undefined || known === message.made)) return [];
    const told = message.cursor > 0;
    const events = this.beginAnew(message);
    return told ? [...events, ...this.resumeNow(message, "lost")] : events;
  }

  /** The server lost what it had told: nothing of it stands. */
  private beginAnew(message: Message): SessionEvent[] {
    const told = message.cursor > 0;
    message.cursor = message.attempt = 0;
    message.reopenedAt = message.gapAt = -1;
    message.earlierEnd = message.parts = undefined;
    if (told) message.dropOutput();
    return told ? [{ type: "replaced", message }] : [];
  }

  private onError(frame: ErrorFrame): SessionEvent[] {
    const { error } = frame;
    const re = frame.re ?? undefined;
    const conversation = frame.conversation ?? undefined;
    if (conversation !== undefined && (re === "subscribe" || re === "history")) {
      return this.onConversationError(conversation, re, error);
    }
    const message = this.messages.get(frame.id ?? "");
    if (!message || message.ended || message.state === "detached" || re === "cancel" || re === "detach") {
      return [{ type: "error", message, re, error, ...(conversation !== undefined && { conversation }) }];
    }
    if (message.state === "sending") return this.onSendError(message, re, error);
    if (error.code === "message_unknown" && re !== "send") return this.askAnew(message, error);
    if (re === "send" && message.cursor === 0) return this.failHere(message, "refuse", error);
    if (!error.retryable) return this.failHere(message, "lose", error);
    message.move("stall");
    return [{ type: "stalled", message, error, afterMs: error.retry_after_ms ?? undefined }];
  }

  /** What can't be had is not asked for any more; for what can be had later, see `again`. */
  private onConversationError(conversation: string, re: "subscribe" | "history", error: ErrorBody): SessionEvent[] {
    if (re === "subscribe") this.askedFor.delete(conversation);
    if (!error.retryable && re === "subscribe") this.dropConversation(conversation);
    else if (!error.retryable) this.pageDone(conversation);
    return [{ type: "error", message: undefined, re, error, conversation }];
  }

  private onSendError(message: Message, re: string | undefined, error: ErrorBody): SessionEvent[] {
    if (error.code === "message_unknown" && re !== "send") {
      const probed = message.probed; // It never arrived, so ask for it.
      message.probed = false;
      return probed ? this.askAgain(message) : [];
    }
    if (error.code === "draining" && this.draining) {
      message.transmitted = false;
      return [{ type: "error", message, re, error }];
    }
    if (message.uncertain && UNPROVEN.has(error.code)) {
      return [{ type: "stalled", message, error, afterMs: error.retry_after_ms ?? undefined }];
    }
    return this.failHere(message, "refuse", error);
  }

  private failHere(message: Message, trigger: Trigger, error: ErrorBody): SessionEvent[] {
    message.move(trigger);
    message.error = error;
    message.parts = undefined;
    return [{ type: "ended", message }];
  }

  // --- the connection ------------------------------------------------------------------------------------------------

  private onWelcome(frame: Welcome): SessionEvent[] {
    this.open = true;
    this.draining = false;
    this.queue = [];
    for (const conversation of this.conversations.keys()) this.queueSubscribe(conversation);
    this.queue.push(...this.pages, ...this.waiting);
    this.waiting = [];
    const known = new Map(frame.resumed.map((head) => [head.id, head]));
    const events: SessionEvent[] = [{ type: "welcomed", frame }];
    for (const message of this.unfinished) {
      events.push(...this.reattach(message, message.probed ? known.get(message.id) : undefined));
    }
    return events;
  }

  /** Pick a message up on a new connection; `head` is what `welcome` says of it, if it was asked about. */
  private reattach(message: Message, head: MessageHead | undefined): SessionEvent[] {
    const events: SessionEvent[] = [];
    if (head) {
      message.move("accept");
      message.serverState = head.state;
      events.push({ type: "accepted", message, replay: true }, ...this.sameOrAnew(message, head));
    } else if (message.state === "sending") {
      message.probed = false;
      return this.askAgain(message);
    } else {
      this.queueResume(message);
    }
    message.reconnects++;
    if (message.cancelRequested) this.put({ type: "cancel", id: message.id });
    return events;
  }

  /** The server may not have got it: the same request under the same id, or nothing if it was cancelled. */
  private askAgain(message: Message): SessionEvent[] {
    if (!message.cancelRequested) {
      this.queueSend(message);
      return [];
    }
    this.put({ type: "cancel", id: message.id }); // In case it is on its way to another node.
    message.move("cancel");
    return [{ type: "ended", message }];
  }

  /** The server lost a message that it had accepted: ask for it again, if it was this client that asked. */
  private askAnew(message: Message, error: ErrorBody): SessionEvent[] {
    if (message.request === undefined || message.askedAnew >= MAX_ASKED_ANEW) {
      return this.failHere(message, "lose", error);
    }
    if (message.cancelRequested) return this.askAgain(message);
    message.askedAnew++;
    message.resyncs++;
    message.move("ask_anew");
    message.transmitted = message.probed = false;
    message.pongMark = message.made = undefined;
    const events = this.beginAnew(message);
    this.queueSend(message);
    return [...events, { type: "resyncing", message, reason: "lost" }];
  }

  private onGoaway(frame: Goaway): SessionEvent[] {
    this.draining = true;
    this.queue = this.queue.filter((queued) => queued.type !== "send");
    return [{ type: "goaway", reason: frame.reason ?? "", afterMs: frame.reconnect_after_ms }];
  }

  private onPong(frame: Pong): SessionEvent[] {
    const heads = new Map((frame.open ?? []).map((head) => [head.id, head.seq]));
    const events = this.unfinished.flatMap((message) => this.compareHead(message, heads.get(message.id)));
    events.push({ type: "pong", nonce: frame.nonce ?? undefined });
    return events;
  }

  /**
   * Whether the server's head and our cursor tell that something got lost. A pong overtakes data, so being behind is
   * normal once; being behind at the same place twice is not.
   */
  private compareHead(message: Message, head: number | undefined): SessionEvent[] {
    if (message.state === "sending" && head === undefined) return this.countUnanswered(message);
    const answered = message.state === "following";
    if (answered) {
      if (head === undefined) return this.resumeNow(message, "missing");
      if (head <= message.cursor) {
        message.pongMark = undefined;
        return [];
      }
    }
    const before = message.pongMark;
    message.pongMark = { cursor: message.cursor, answered };
    if (before?.cursor !== message.cursor || before.answered !== answered) return [];
    return this.resumeNow(message, answered ? "behind" : "unanswered");
  }

  /** A request without an answer over several pongs is asked again; if it is only slow, that attaches to it. */
  private countUnanswered(message: Message): SessionEvent[] {
    message.unansweredPongs++;
    if (!message.transmitted || message.unansweredPongs < UNANSWERED_PONGS) return [];
    message.unansweredPongs = 0;
    message.resyncs++;
    this.queueSend(message);
    return [{ type: "resyncing", message, reason: "unanswered" }];
  }

  private resumeNow(message: Message, reason: ResyncReason): SessionEvent[] {
    message.pongMark = undefined;
    if (!message.move("resume") && !message.move("gap")) return [];
    message.resyncs++;
    this.queueResume(message);
    return [{ type: "resyncing", message, reason }];
  }

  private onHistory(frame: HistoryPage): SessionEvent[] {
    this.pageDone(frame.conversation);
    return [{ type: "history", frame }];
  }

  /** The oldest page asked for of this conversation needs not be asked for again. */
  private pageDone(conversation: string): void {
    const asked = this.pages.findIndex((page) => page.conversation === conversation);
    if (asked >= 0) this.pages.splice(asked, 1);
  }

  /** An answer (it moves no cursor), or something that happened to a conversation. */
  private onConversation(frame: ConversationFrame): SessionEvent[] {
    const { op, seq } = frame;
    const conversation = frame.conversation ?? "";
    if (op === "subscribed") {
      this.askedFor.delete(conversation);
    } else if (op === "reset" || op === "deleted") {
      if (!this.conversations.has(conversation)) return [];
      this.conversations.set(conversation, seq ?? 0);
      if (op === "deleted") this.dropConversation(conversation);
    } else if (!CONVERSATION_REQUESTS.has(op) && seq != null && !this.isNext(conversation, seq)) {
      return [];
    }
    return [{ type: "conversation", frame }];
  }

  /** Whether this event continues the conversation's log; then it counts as told. A gap is asked about. */
  private isNext(conversation: string, seq: number): boolean {
    const known = this.conversations.get(conversation);
    if (known === undefined || seq <= known) return false;
    if (seq > known + 1) {
      if (!this.askedFor.has(conversation)) this.queueSubscribe(conversation);
      return false;
    }
    this.conversations.set(conversation, seq);
    return true;
  }

  private dropConversation(conversation: string): void {
    this.conversations.delete(conversation);
    this.askedFor.delete(conversation);
    this.queue = this.queue.filter((frame) => !(frame.type === "subscribe" && frame.conversation === conversation));
  }

  private queueSubscribe(conversation: string): void {
    const after = this.conversations.get(conversation) ?? 0;
    this.put({ type: "subscribe", conversation, ...(after > 0 && { after }) });
    if (this.open) this.askedFor.add(conversation);
  }

  // --- helpers -------------------------------------------------------------------------------------------------------

  /** The message a frame is about, if it may still change. One of a subscribed conversation is followed from now on. */
  private live(id: string): Message | undefined {
    let message = this.messages.get(id);
    if (!message && this.conversations.size > 0 && !this.forgotten.has(id)) {
      message = new Message(id, undefined, "following");
      this.messages.set(id, message);
    }
    return message && !message.ended && message.state !== "detached" ? message : undefined;
  }

  private put(frame: ClientFrame): void {
    if (this.open) this.queue.push(frame);
  }

  private queueSend(message: Message): void {
    if (this.draining || !message.request) return;
    const reopen = message.reopenedAt >= 0 && { retry_of: message.reopenedAt, after: message.cursor };
    this.put({ type: "send", ...message.request, ...reopen });
  }

  private queueResume(message: Message): void {
    message.pongMark = undefined;
    this.put({ type: "resume", id: message.id, after: message.cursor });
  }
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

function checkFields(frame: ServerFrame): void {
  if (typeof frame?.type !== "string") throw new MalformedFrame("a frame is a map with a `type`");
  const fields = frame as unknown as Record<string, unknown>;
  const missing = REQUIRED[frame.type]?.find((name) => fields[name] === undefined || fields[name] === null);
  if (missing !== undefined) throw new MalformedFrame(`${frame.type}: \`${missing}\` is missing`);
}
