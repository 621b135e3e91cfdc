/**
 * Conversations, to be awaited: `const conversations = new Conversations(client)`.
 *
 * The answers on the wire do not name their question, so that what is asked of one conversation takes turns here. A
 * question that a broken connection left without an answer is put again: each of them may be.
 */

import { Conversation, type ConversationOptions } from "./conversation.ts";
import { ClientClosed, ConnectionFailed, TidewireError } from "./errors.ts";
import { newId } from "./ids.ts";
import type { ClientEvent } from "./options.ts";
import type { PageOptions } from "./session.ts";
import type { Client } from "./socket.ts";
import type { ConversationFrame, ConversationRequest, ErrorBody, HistoryPage } from "./types.ts";

/** What the server tells of a conversation beside its entries. */
export interface Overview {
  /** Its id. */
  conversation: string;
  /** The number of the last event of its log. */
  seq: number;
  /** Null until it has one. */
  title: string | null;
  /** The last entry of the chosen branch. */
  tip: string | null;
  /** The message that is being answered. */
  current: string | null;
  /** The messages that wait for their turn, in order. */
  queue: string[];
  /** How many entries it has, on all branches. */
  entries: number;
  /** Of their contents, on all branches. */
  bytes: number;
  /** Seconds since 1970. */
  created: number;
  /** Likewise; when anything last happened in it. */
  updated: number;
}

/** Conversations, the one that changed last first; `next` is the `before` of the page that follows. */
export interface Listing {
  conversations: Overview[];
  /** Where the next page begins: give it as `before`. Undefined: this was the last. */
  next?: number;
}

/** A message that waits for its turn, with what was asked. */
export interface Waiting {
  id: string;
  /** Its place, from 1. */
  queue_position: number;
  /** What `input` of its request was. */
  input: unknown;
}

type Request = Omit<ConversationRequest, "type">;
type Answered = ConversationFrame | HistoryPage;

/** A question, and who waits for its answer. */
interface Asked {
  conversation: string;
  ask: { op: Request; page?: never } | { page: PageOptions; op?: never };
  /** It went out on this connection. */
  sent: boolean;
  /** It went out on an earlier one, so it may have been done. */
  repeated: boolean;
  resolve(frame: Answered): void;
  reject(error: unknown): void;
}

/**
 * Make, list, read, name, branch and delete conversations. Every promise rejects with a `TidewireError` if the server
 * refuses, and waits for a connection if there is none.
 */
export class Conversations {
  /** What it asks through. */
  readonly client: Client;
  /** Conversation → what is asked of it, the first of which is under way; `""`: of none. */
  private readonly lanes = new Map<string, Asked[]>();

  /** Listens to `client` from now on, which may be started already or later. */
  constructor(client: Client) {
    this.client = client;
    client.on((event) => this.onEvent(event));
  }

  /** A live view of one conversation: its entries, kept current, with what can be done to them. */
  open(id: string, options: ConversationOptions = {}): Conversation {
    return new Conversation(this, id, options);
  }

  /** Make a conversation; one of that id that exists is left as it is. */
  async create(options: { id?: string; title?: string } = {}): Promise<Overview> {
    const { id = newId(), title } = options;
    return shown(await this.operate({ op: "create", conversation: id, ...(title !== undefined && { title }) }));
  }

  /** A page of the user's conversations. */
  async list(options: { before?: number; limit?: number } = {}): Promise<Listing> {
    const { conversations, next } = await this.operate({ op: "list", ...options });
    return { conversations: conversations as Overview[], ...(next != null && { next: next as number }) };
  }

  /** What the server tells of one. Rejects with `conversation_unknown` if there is none of this id. */
  async get(id: string): Promise<Overview> {
    return shown(await this.operate({ op: "get", conversation: id }));
  }

  /** Give it another title, on all devices. */
  async rename(id: string, title: string): Promise<void> {
    await this.operate({ op: "rename", conversation: id, title });
  }

  /** Have a model make a title, once; the title. */
  async title(id: string, model?: string): Promise<string> {
    const answer = await this.operate({ op: "title", conversation: id, ...(model !== undefined && { model }) });
    return answer.title as string;
  }

  /** Stop what runs, and erase the conversation with all its messages. */
  async delete(id: string): Promise<void> {
    await this.operate({ op: "delete", conversation: id });
  }

  /** Go to the branch through `entry`, to its newest end. */
  async choose(id: string, entry: string): Promise<void> {
    await this.operate({ op: "choose", conversation: id, entry });
  }

  /** Keep `entry` in every model's context. */
  async pin(id: string, entry: string): Promise<void> {
    await this.operate({ op: "pin", conversation: id, entry });
  }

  /** Undo `pin`. */
  async unpin(id: string, entry: string): Promise<void> {
    await this.operate({ op: "unpin", conversation: id, entry });
  }

  /** What waits for its turn; `Client.cancel` takes one back. */
  async waiting(id: string): Promise<Waiting[]> {
    return (await this.operate({ op: "waiting", conversation: id })).queue as Waiting[];
  }

  /** Answer single calls of tools (messages of role `tool`); the ids of the calls that are still without an answer. */
  async answer(id: string, input: Record<string, unknown> | Record<string, unknown>[]): Promise<string[]> {
    return (await this.operate({ op: "answer", conversation: id, input })).missing as string[];
  }

  /** The whole of a part that is told as a reference, or of an entry that came `truncated`. */
  async part(id: string, of: { ref: string } | { entry: string }): Promise<unknown> {
    let text = "";
    for (let offset: number | undefined = 0; offset !== undefined; ) {
      const piece: ConversationFrame = await this.operate({ op: "part", conversation: id, ...of, offset });
      text += piece.data as string;
      offset = piece.next as number | undefined;
    }
    return JSON.parse(text);
  }

  /** A page of a conversation's chosen branch: its end, what lies `before` an entry, or what follows `after` one. */
  async history(id: string, options: PageOptions = {}): Promise<HistoryPage> {
    return (await this.put(id, { page: options })) as HistoryPage;
  }

  // --- turns ---------------------------------------------------------------------------------------------------------

  private async operate(op: Request): Promise<ConversationFrame> {
    return (await this.put(op.conversation ?? "", { op })) as ConversationFrame;
  }

  private put(conversation: string, ask: Asked["ask"]): Promise<Answered> {
    const over = this.over();
    if (over) return Promise.reject(over);
    return new Promise((resolve, reject) => {
      const lane = this.lanes.get(conversation) ?? [];
      this.lanes.set(conversation, lane);
      lane.push({ conversation, ask, sent: false, repeated: false, resolve, reject });
      this.next(conversation);
    });
  }

  /** Put the first question of a lane, if it was not put yet and there is a connection. */
  private next(conversation: string): void {
    const asked = this.lanes.get(conversation)?.[0];
    if (!asked || asked.sent || this.client.status.phase !== "open") return;
    asked.sent = true;
    if (asked.ask.op) this.client.conversation(asked.ask.op);
    else if (!asked.repeated) this.client.history(conversation, asked.ask.page); // The session puts it again itself.
  }

  private settle(asked: Asked, end: (asked: Asked) => void): void {
    const lane = this.lanes.get(asked.conversation) ?? [];
    lane.shift();
    if (lane.length === 0) this.lanes.delete(asked.conversation);
    end(asked);
    this.next(asked.conversation);
  }

  private onEvent(event: ClientEvent): void {
    if (event.type === "welcomed") this.onWelcome();
    else if (event.type === "history") this.onAnswer(event.frame, (asked) => asked.ask.page !== undefined);
    else if (event.type === "conversation") {
      this.onAnswer(event.frame, (asked) => asked.ask.op?.op === event.frame.op);
    } else if (event.type === "error" && (event.re === "conversation" || event.re === "history")) {
      this.onError(event.conversation ?? "", event.re, event.error);
    } else if (event.type === "status") this.onStatus();
  }

  private onWelcome(): void {
    for (const [conversation, [first]] of this.lanes) {
      if (first?.sent) Object.assign(first, { sent: false, repeated: true });
      this.next(conversation);
    }
  }

  private onAnswer(frame: Answered, answers: (asked: Asked) => boolean): void {
    const asked = this.lanes.get(frame.conversation ?? "")?.[0];
    if (asked?.sent && answers(asked)) this.settle(asked, () => asked.resolve(frame));
  }

  private onError(conversation: string, re: string, error: ErrorBody): void {
    const asked = this.lanes.get(conversation)?.[0];
    if (!asked?.sent || (re === "history") !== (asked.ask.page !== undefined)) return;
    if (asked.ask.page && error.retryable) return; // The session asks again when the time has come.
    const gone = asked.ask.op?.op === "delete" && asked.repeated && error.code === "conversation_unknown";
    if (gone) this.settle(asked, () => asked.resolve({ type: "conversation", op: "delete", conversation }));
    else this.settle(asked, () => asked.reject(new TidewireError(error)));
  }

  private onStatus(): void {
    const over = this.over();
    if (!over) return;
    const left = [...this.lanes.values()].flat();
    this.lanes.clear();
    for (const asked of left) asked.reject(over);
  }

  /** Why no answer will come. */
  private over(): TidewireError | undefined {
    const { status, started, lastError } = this.client;
    if (status.phase === "stopped") return new ConnectionFailed(status.closeCode, lastError);
    if (status.phase !== "closed" || !started) return undefined;
    return new ClientClosed({ code: "client_closed", message: "the client was closed" });
  }
}

function shown(frame: ConversationFrame): Overview {
  const { type: _, op: __, ...rest } = frame;
  return rest as unknown as Overview;
}
