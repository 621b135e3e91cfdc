/**
 * The client side of the protocol, without I/O: frames in, events out, frames to send. No socket, clock, dice or DOM.
 *
 * A shell opens a WebSocket, sends `hello()`, hands every decoded frame to `receive` and sends what `outgoing()`
 * returns after every call that may have queued something. When the socket is gone it calls `disconnected()` and
 * starts over with the same session. The rules are those of `protocol/client/session.py`, and of protocol/vectors.
 */

import { checkFields, type SessionEvent } from "./events.ts";
import { Message, type SavedMessage } from "./message.ts";
import { Outbox } from "./outbox.ts";
import { Progress } from "./progress.ts";
import { Standing } from "./standing.ts";
import { type PageOptions, Subscriptions } from "./subscriptions.ts";
import type {
  ClientFrame,
  ConversationRequest,
  ErrorFrame,
  Goaway,
  Hello,
  Pong,
  SendRequest,
  ServerFrame,
  Welcome,
} from "./types.ts";

export { MalformedFrame, type ResyncReason, type SessionEvent } from "./events.ts";
export type { PageOptions } from "./subscriptions.ts";

/** What `hello` says of this client. */
export const CLIENT_NAME = "tidewire-web";
/** Its version there. */
export const CLIENT_VERSION = "1";
/** One `hello` resumes at most so many messages; the others follow by frames of their own. */
const MAX_RESUMES_PER_HELLO = 256;
/** So many ids of forgotten messages are remembered, so that a late frame does not bring one back. */
const MAX_FORGOTTEN = 1024;

/** What an earlier run kept of a message. */
export interface Kept {
  /** The cursor: `seq` of the last event that was applied. */
  after?: number;
  /** The text that stood there. */
  text?: string;
  /** The reasoning that stood there. */
  reasoning?: string;
}

/** All messages and conversations of one client, over any number of connections one after another. */
export class Session {
  /** Goes out with the next `hello`. */
  token: string | undefined;
  /** What `hello` says of the client; change it before the first connection. */
  client = { name: CLIENT_NAME, version: CLIENT_VERSION };
  /** Every message asked for or followed and not yet forgotten, by id. */
  readonly messages = new Map<string, Message>();

  private readonly outbox = new Outbox();
  private readonly progress = new Progress(this.outbox);
  private readonly standing = new Standing(this.outbox, this.progress);
  private readonly subscriptions = new Subscriptions(this.outbox);
  private readonly forgotten = new Set<string>();

  /** Whether `welcome` arrived on the present connection. */
  get open(): boolean {
    return this.outbox.open;
  }

  /** The server said `goaway`: what is asked for now waits for the next connection. */
  get draining(): boolean {
    return this.outbox.draining;
  }

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
    this.outbox.send(message);
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
    this.outbox.send(message);
    return true;
  }

  /**
   * Follow a message: again (then from its cursor), or one that is new to this session. For a new one `kept` is what
   * an earlier run kept of it; by default it is told whole.
   */
  resume(id: string, kept: Kept = {}): Message {
    const known = this.messages.get(id);
    if (known) {
      if (known.move("resume")) this.outbox.resume(known);
      else if (known.state === "sending" && known.transmitted) this.outbox.send(known);
      return known;
    }
    const message = new Message(id, undefined, "resyncing");
    message.cursor = kept.after ?? 0;
    message.add(kept);
    this.messages.set(id, message);
    this.outbox.resume(message);
    return message;
  }

  /** Stop following; the message goes on. False if it isn't followed. */
  detach(id: string): boolean {
    const message = this.messages.get(id);
    if (!message?.move("detach")) return false;
    message.parts = undefined;
    this.outbox.put({ type: "detach", id });
    return true;
  }

  /** Stop generating. The receipt is an `ended` later; at once, if the request never went out. */
  cancel(id: string): SessionEvent[] {
    const message = this.messages.get(id);
    if (!message || message.ended) return [];
    message.cancelRequested = true;
    if (message.state === "sending" && !message.transmitted) {
      this.outbox.withdraw((frame) => frame.type === "send" && frame.id === id);
      message.move("cancel");
      return [{ type: "ended", message }];
    }
    this.outbox.put({ type: "cancel", id });
    return [];
  }

  /** Drop an ended or detached message from memory; frames about it are ignored from now on. */
  forget(id: string): void {
    this.messages.delete(id);
    if (this.subscriptions.size === 0) return;
    this.forgotten.add(id);
    if (this.forgotten.size > MAX_FORGOTTEN) this.forgotten.delete(this.forgotten.values().next().value as string);
  }

  /** Ask for a `pong`, which also tells the heads of all open messages. */
  ping(nonce: string | number): void {
    this.outbox.put({ type: "ping", nonce });
  }

  /** Renew the credentials on the open connection and for later ones. */
  auth(token: string): void {
    this.token = token;
    this.outbox.put({ type: "auth", token });
  }

  /**
   * Follow every message of a conversation, from any device, on this and later connections. `after` is the `seq` of the
   * last page of its history, or of the last event that was kept; 0: from the beginning.
   */
  subscribe(conversation: string, after = 0): void {
    this.subscriptions.follow(conversation, after);
  }

  /** Stop following a conversation; late events of it are not told. */
  unsubscribe(conversation: string): void {
    this.subscriptions.leave(conversation);
  }

  /** `seq` of the last event that was told of a conversation; undefined if it is not subscribed to. */
  subscribed(conversation: string): number | undefined {
    return this.subscriptions.cursor(conversation);
  }

  /** Ask again for what was refused for now: the subscription, and pages that did not come. */
  again(conversation: string): void {
    this.subscriptions.again(conversation);
  }

  /** Ask for a page of a conversation; asked again on a new connection until it came. */
  history(conversation: string, options: PageOptions = {}): void {
    this.subscriptions.page(conversation, options);
  }

  /**
   * One operation on conversations (`create`, `list`, `rename`, …); the answer is a `conversation` event. Without a
   * connection it waits for the next one. One that was sent and not answered is not repeated: whether it was done is
   * seen in the conversation's events.
   */
  conversation(request: Omit<ConversationRequest, "type">): void {
    this.subscriptions.operate(request);
  }

  /** Everything a later session needs to go on with the open messages. */
  save(): SavedMessage[] {
    return this.unfinished.map((message) => message.save());
  }

  /** Subscribed conversation → its cursor, for a later session. */
  saveConversations(): Record<string, number> {
    return this.subscriptions.save();
  }

  /** Take over what an earlier session saved. Call before `hello`. */
  restore(saved: SavedMessage[], conversations: Record<string, number> = {}): void {
    this.subscriptions.restore(conversations);
    for (const entry of saved) {
      if (!this.messages.has(entry.id)) this.messages.set(entry.id, Message.restore(entry));
    }
  }

  // --- what the connection does --------------------------------------------------------------------------------------

  /** Frames to send now, in order; each is returned once. Empty before `welcome`. */
  outgoing(): ClientFrame[] {
    const frames = this.outbox.take();
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
        return this.about(frame, (message) => this.progress.onDelta(message, frame));
      case "accepted":
        return this.about(frame, (message) => this.standing.onAccepted(message, frame));
      case "attempt":
        return this.about(frame, (message) => this.progress.onAttempt(message, frame));
      case "snapshot":
        return this.about(frame, (message) => this.progress.onSnapshot(message, frame));
      case "done":
      case "cancelled":
        return this.about(frame, (message) => this.progress.onVerifiedEnd(message, frame));
      case "failed":
        return this.about(frame, (message) => this.progress.onFailed(message, frame));
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
        return this.subscriptions.onNotice(frame);
      case "conversation":
        return this.subscriptions.onConversation(frame);
      case "history":
        return this.subscriptions.onHistory(frame);
      default:
        return [];
    }
  }

  /** The connection is gone: forget what belonged to it. What stands of the messages is kept. */
  disconnected(): void {
    this.outbox.end();
    this.subscriptions.disconnected();
    for (const message of this.messages.values()) {
      message.parts = message.pongMark = undefined;
      message.unansweredPongs = 0;
      message.uncertain = message.state === "sending" && message.transmitted;
    }
  }

  // --- frames that are not of one message ----------------------------------------------------------------------------

  private onError(frame: ErrorFrame): SessionEvent[] {
    const { error } = frame;
    const re = frame.re ?? undefined;
    const conversation = frame.conversation ?? undefined;
    if (conversation !== undefined && (re === "subscribe" || re === "history")) {
      return this.subscriptions.onError(conversation, re, error);
    }
    const message = this.messages.get(frame.id ?? "");
    if (!message || message.ended || message.state === "detached" || re === "cancel" || re === "detach") {
      return [{ type: "error", message, re, error, ...(conversation !== undefined && { conversation }) }];
    }
    return this.standing.onError(message, re, error);
  }

  private onWelcome(frame: Welcome): SessionEvent[] {
    this.outbox.begin();
    this.subscriptions.welcomed();
    const known = new Map(frame.resumed.map((head) => [head.id, head]));
    const events: SessionEvent[] = [{ type: "welcomed", frame }];
    for (const message of this.unfinished) {
      events.push(...this.standing.reattach(message, message.probed ? known.get(message.id) : undefined));
    }
    return events;
  }

  private onGoaway(frame: Goaway): SessionEvent[] {
    this.outbox.draining = true;
    this.outbox.withdraw((queued) => queued.type === "send");
    return [{ type: "goaway", reason: frame.reason ?? "", afterMs: frame.reconnect_after_ms }];
  }

  private onPong(frame: Pong): SessionEvent[] {
    const heads = new Map((frame.open ?? []).map((head) => [head.id, head.seq]));
    const events = this.unfinished.flatMap((message) => this.standing.compareHead(message, heads.get(message.id)));
    events.push({ type: "pong", nonce: frame.nonce ?? undefined });
    return events;
  }

  // --- messages ------------------------------------------------------------------------------------------------------

  private about(frame: { id: string }, apply: (message: Message) => SessionEvent[]): SessionEvent[] {
    const message = this.live(frame.id);
    return message ? apply(message) : [];
  }

  /** The message a frame is about, if it may still change. One of a subscribed conversation is followed from now on. */
  private live(id: string): Message | undefined {
    let message = this.messages.get(id);
    if (!message && this.subscriptions.size > 0 && !this.forgotten.has(id)) {
      message = new Message(id, undefined, "following");
      this.messages.set(id, message);
    }
    return message && !message.ended && message.state !== "detached" ? message : undefined;
  }
}
