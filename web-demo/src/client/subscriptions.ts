/** The conversations that a client follows, each with its own cursor, and what it asked about conversations. */

import type { SessionEvent } from "./events.ts";
import type { Outbox } from "./outbox.ts";
import type {
  ConversationFrame,
  ConversationRequest,
  ErrorBody,
  History,
  HistoryPage,
  MessageNotice,
} from "./types.ts";

/** Every other `op` of a `conversation` frame with a `seq` is an event of the log, also one that is not known here. */
const REQUESTS = new Set("create list get rename title delete choose pin unpin waiting answer part".split(" "));

/** Which page of a conversation: its end, what lies `before` an entry, what follows `after` one; along a `branch`. */
export type PageOptions = Partial<Pick<History, "limit">> & { before?: string; after?: string; branch?: string };

export class Subscriptions {
  private readonly outbox: Outbox;
  /** Subscribed conversation → the last `seq` of its log that was told. */
  private readonly cursors = new Map<string, number>();
  /** Conversations whose `subscribe` was sent on the present connection and not answered yet. */
  private readonly askedFor = new Set<string>();
  /** Operations on conversations that were asked for without a connection. */
  private waiting: ConversationRequest[] = [];
  private pages: History[] = [];

  constructor(outbox: Outbox) {
    this.outbox = outbox;
  }

  /** How many conversations are followed. */
  get size(): number {
    return this.cursors.size;
  }

  cursor(conversation: string): number | undefined {
    return this.cursors.get(conversation);
  }

  /** Every cursor, to be kept. */
  save(): Record<string, number> {
    return Object.fromEntries(this.cursors);
  }

  restore(cursors: Record<string, number>): void {
    for (const [conversation, seq] of Object.entries(cursors)) {
      if (!this.cursors.has(conversation)) this.cursors.set(conversation, seq);
    }
  }

  follow(conversation: string, after: number): void {
    this.cursors.set(conversation, after);
    this.ask(conversation);
  }

  leave(conversation: string): void {
    this.drop(conversation);
    this.outbox.put({ type: "unsubscribe", conversation });
  }

  page(conversation: string, options: PageOptions): void {
    const frame: History = { type: "history", conversation, limit: 50, ...options };
    this.pages.push(frame);
    this.outbox.put(frame);
  }

  operate(request: Omit<ConversationRequest, "type">): void {
    const frame: ConversationRequest = { type: "conversation", ...request };
    if (this.outbox.open) this.outbox.put(frame);
    else this.waiting.push(frame);
  }

  /** Ask again for what was refused for now. */
  again(conversation: string): void {
    if (this.cursors.has(conversation)) this.ask(conversation);
    for (const page of this.pages) if (page.conversation === conversation) this.outbox.put(page);
  }

  /** A connection was made. */
  welcomed(): void {
    for (const conversation of this.cursors.keys()) this.ask(conversation);
    for (const frame of [...this.pages, ...this.waiting]) this.outbox.put(frame);
    this.waiting = [];
  }

  disconnected(): void {
    this.askedFor.clear();
  }

  onNotice(frame: MessageNotice): SessionEvent[] {
    return this.isNext(frame.conversation, frame.seq ?? 0) ? [{ type: "notice", frame }] : [];
  }

  onHistory(frame: HistoryPage): SessionEvent[] {
    this.pageDone(frame.conversation);
    return [{ type: "history", frame }];
  }

  /** An answer (it moves no cursor), or something that happened to a conversation. */
  onConversation(frame: ConversationFrame): SessionEvent[] {
    const { op, seq } = frame;
    const conversation = frame.conversation ?? "";
    if (op === "subscribed") {
      this.askedFor.delete(conversation);
    } else if (op === "reset" || op === "deleted") {
      if (!this.cursors.has(conversation)) return [];
      this.cursors.set(conversation, seq ?? 0);
      if (op === "deleted") this.drop(conversation);
    } else if (!REQUESTS.has(op) && seq != null && !this.isNext(conversation, seq)) {
      return [];
    }
    return [{ type: "conversation", frame }];
  }

  /** What can't be had is not asked for any more; for what can be had later, see `again`. */
  onError(conversation: string, re: "subscribe" | "history", error: ErrorBody): SessionEvent[] {
    if (re === "subscribe") this.askedFor.delete(conversation);
    if (!error.retryable && re === "subscribe") this.drop(conversation);
    else if (!error.retryable) this.pageDone(conversation);
    return [{ type: "error", message: undefined, re, error, conversation }];
  }

  /** The oldest page asked for of this conversation needs not be asked for again. */
  private pageDone(conversation: string): void {
    const asked = this.pages.findIndex((page) => page.conversation === conversation);
    if (asked >= 0) this.pages.splice(asked, 1);
  }

  /** Whether this event continues the conversation's log; then it counts as told. A gap is asked about. */
  private isNext(conversation: string, seq: number): boolean {
    const known = this.cursors.get(conversation);
    if (known === undefined || seq <= known) return false;
    if (seq > known + 1) {
      if (!this.askedFor.has(conversation)) this.ask(conversation);
      return false;
    }
    this.cursors.set(conversation, seq);
    return true;
  }

  private drop(conversation: string): void {
    this.cursors.delete(conversation);
    this.askedFor.delete(conversation);
    this.outbox.withdraw((frame) => frame.type === "subscribe" && frame.conversation === conversation);
  }

  private ask(conversation: string): void {
    const after = this.cursors.get(conversation) ?? 0;
    this.outbox.put({ type: "subscribe", conversation, ...(after > 0 && { after }) });
    if (this.outbox.open) this.askedFor.add(conversation);
  }
}
