/** One conversation as an application shows it: the entries of the chosen branch, kept current from any device. */

import type { Answer } from "./answer.ts";
import { TidewireError } from "./errors.ts";
import type { Message } from "./message.ts";
import type { ClientEvent, FollowOptions } from "./options.ts";
import type { PageOptions } from "./session.ts";
import type { Client } from "./socket.ts";
import type { ConversationFrame, HistoryPage, MessageNotice, Send } from "./types.ts";

/** A question, an answer, a tool's result or an instruction. An answer's id is that of its message. */
export interface Entry {
  /** Its own, unique within the conversation. */
  id: string;
  /** The entry above it; null for the first. */
  parent?: string | null;
  /** `user`, `assistant`, `tool`, `system`, `developer`. */
  role: string;
  /** Of an answer: `running`, `done`, `failed`, `cancelled`, `interrupted`. */
  state?: string | null;
  /** The text, or parts as in chat completions; one of more than 32 KB is a `ref` (`Conversations.part`). */
  content?: string | Record<string, unknown>[] | null;
  /** The tools that an answer calls, as in chat completions. */
  tool_calls?: Record<string, unknown>[];
  /** All entries below the same parent, itself included, oldest first, if there are several: the branches. */
  siblings?: string[];
  /** It stays in every model's context. */
  pinned?: boolean;
  [field: string]: unknown;
}

/** How a conversation is opened. */
export interface ConversationOptions {
  /** How many entries are loaded at first; 50 unless given, at most 200. */
  limit?: number;
}

/** What an application gives beside the input to ask for an answer in a conversation. */
export type Ask = Omit<Send, "type" | "id" | "messages" | "conversation" | "input" | "parent" | "retry_of" | "after">;
type Input = NonNullable<Send["input"]>;

/** What a conversation needs of `Conversations`. */
interface Keeper {
  readonly client: Client;
  history(id: string, options: PageOptions): Promise<HistoryPage>;
  choose(id: string, entry: string): Promise<void>;
}

/** Made by `Conversations.open`. Read freely; a listener given to `on` is told of every change. */
export class Conversation {
  /** The conversation's id. */
  readonly id: string;
  /** `loading` until the first page is here; `failed`: see `error`; `closed` by us. */
  state: "loading" | "ready" | "deleted" | "failed" | "closed" = "loading";
  /** Why it `failed`: a `TidewireError`. */
  error: unknown;
  /** The loaded entries of the chosen branch, oldest first. An answer that runs: see `message`. */
  entries: Entry[] = [];
  /** Null until it has one. */
  title: string | null = null;
  /** The message that is being answered. */
  current: string | null = null;
  /** The messages that wait for their turn, in order. */
  queue: string[] = [];
  /** Whether there are entries before those loaded. */
  hasOlder = false;

  private readonly conversations: Keeper;
  private readonly limit: number;
  private readonly listeners = new Set<() => void>();
  private readonly stop: () => void;
  /** The last event of the log that is in what is shown. */
  private seq = 0;
  private loads = 0;
  private loading: Promise<void>;
  /** What was told while a page was on its way. */
  private held: (MessageNotice | ConversationFrame)[] | undefined = [];

  constructor(conversations: Keeper, id: string, options: ConversationOptions) {
    this.conversations = conversations;
    this.id = id;
    this.limit = options.limit ?? 50;
    this.stop = conversations.client.on((event) => this.onEvent(event));
    this.loading = this.load();
  }

  /** Told of every change; the return value stops it. */
  on(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Resolves once what is shown is loaded. Rejects if it can't be. */
  async ready(): Promise<this> {
    for (let loading: Promise<void> | undefined; loading !== this.loading; ) {
      loading = this.loading;
      await loading;
    }
    if (this.state === "failed") throw this.error;
    return this;
  }

  /** Show no more of it; what runs goes on. */
  close(): void {
    if (this.state === "closed") return;
    this.stop();
    this.loads++;
    if (this.state !== "deleted") this.conversations.client.unsubscribe(this.id);
    this.state = "closed";
  }

  /** The message behind an answer that this client follows: its text as it grows, usage, cost, tool calls. */
  message(entry: Entry): Message | undefined {
    return this.conversations.client.session.messages.get(entry.id);
  }

  /** The text of an entry as it stands, also of an answer that still runs. */
  textOf(entry: Entry): string {
    const message = this.message(entry);
    if (message && (message.text || entry.content == null)) return message.text;
    if (typeof entry.content === "string") return entry.content;
    return (entry.content ?? []).map((part) => (typeof part.text === "string" ? part.text : "")).join("");
  }

  /** Load the page before the first entry. */
  async older(): Promise<void> {
    await this.ready();
    const [first] = this.entries;
    if (!first || !this.hasOlder) return;
    const { loads } = this;
    const page = await this.conversations.history(this.id, { before: first.id, limit: this.limit });
    if (loads !== this.loads || first !== this.entries[0]) return; // Another branch is shown by now.
    this.entries = [...(page.messages as unknown as Entry[]), ...this.entries];
    this.hasOlder = page.next != null;
    this.tell();
  }

  // --- asking --------------------------------------------------------------------------------------------------------

  /** Go on: only what is new is sent. While another answer runs, `on_busy` decides. */
  ask(input: Input, request: Ask = {}, options: FollowOptions = {}): Answer {
    return this.send({ ...request, input }, options);
  }

  /** Another answer in the place of `answer`, as a branch of its own. */
  regenerate(answer: string, request: Ask = {}, options: FollowOptions = {}): Answer {
    const parent = this.entry(answer).parent;
    if (parent == null) throw new RangeError(`${answer} answers nothing`);
    return this.send({ ...request, parent }, options);
  }

  /** Another question in the place of `question`, as a branch of its own. */
  edit(question: string, input: Input, request: Ask = {}, options: FollowOptions = {}): Answer {
    return this.send({ ...request, input, parent: this.entry(question).parent ?? this.id }, options);
  }

  /** Show the branch through an entry, for instance one of `siblings`; on every device. */
  async choose(entry: string): Promise<void> {
    await this.conversations.choose(this.id, entry);
    await this.ready();
  }

  private send(request: Ask & { input?: Input; parent?: string }, options: FollowOptions): Answer {
    return this.conversations.client.ask({ ...request, conversation: this.id }, options);
  }

  private entry(id: string): Entry {
    const entry = this.entries.find((known) => known.id === id);
    if (!entry) throw new RangeError(`no entry ${id} is loaded in conversation ${this.id}`);
    return entry;
  }

  // --- what the server tells -----------------------------------------------------------------------------------------

  private async load(): Promise<void> {
    const turn = ++this.loads;
    this.held = [];
    try {
      const page = await this.page();
      if (turn === this.loads) this.show(page);
    } catch (error) {
      if (turn !== this.loads) return;
      this.state = "failed";
      this.error = error;
      this.tell();
    }
  }

  private async page(): Promise<HistoryPage> {
    try {
      return await this.conversations.history(this.id, { limit: this.limit });
    } catch (error) {
      // It is made by its first use.
      if (!(error instanceof TidewireError && error.code === "conversation_unknown")) throw error;
      return { type: "history", conversation: this.id, messages: [] };
    }
  }

  private show(page: HistoryPage): void {
    const { client } = this.conversations;
    this.state = "ready";
    this.entries = page.messages as unknown as Entry[];
    this.hasOlder = page.next != null;
    this.title = page.title ?? null;
    this.current = page.current ?? null;
    this.queue = page.queue ?? [];
    this.seq = page.seq ?? 0;
    const held = this.held ?? [];
    this.held = undefined;
    if (client.session.subscribed(this.id) === undefined) client.subscribe(this.id, this.seq);
    for (const frame of held) this.apply(frame);
    this.tell();
  }

  private onEvent(event: ClientEvent): void {
    if (event.type === "notice" || event.type === "conversation") {
      if (event.frame.conversation !== this.id) return;
      if (this.held) this.held.push(event.frame);
      else if (this.apply(event.frame)) this.tell();
    } else if ("message" in event && event.message) {
      const { id, text } = event.message;
      const entry = this.entries.findLast((known) => known.id === id);
      if (entry && event.type === "ended") entry.content ??= text;
      if (entry) this.tell();
    }
  }

  /** Whether it changed anything that is shown. */
  private apply(frame: MessageNotice | ConversationFrame): boolean {
    if (frame.type === "conversation" && frame.op === "deleted") return this.onDeleted();
    if (frame.type === "conversation" && frame.op === "reset") return this.reload();
    if (frame.seq == null || frame.seq <= this.seq) return false;
    if (frame.type === "message") {
      this.seq = frame.seq;
      return this.onNotice(frame);
    }
    return this.onOperation(frame, frame.seq);
  }

  private onNotice(frame: MessageNotice): boolean {
    const { type: _, conversation: __, seq: ___, ...entry } = frame;
    const known = this.entries.findLast((other) => other.id === frame.id);
    if (known) {
      Object.assign(known, entry);
      return true;
    }
    if ((frame.parent ?? null) !== (this.entries.at(-1)?.id ?? null)) return this.reload(); // It begins a branch.
    this.entries.push(entry as Entry);
    return true;
  }

  private onOperation(frame: ConversationFrame, seq: number): boolean {
    switch (frame.op) {
      case "created":
      case "renamed":
        this.title = (frame.title as string | null) ?? null;
        break;
      case "queue":
        this.current = (frame.current as string) || null;
        this.queue = frame.queue as string[];
        break;
      case "pinned":
      case "unpinned": {
        const entry = this.entries.find((known) => known.id === frame.entry);
        if (entry) entry.pinned = frame.op === "pinned";
        break;
      }
      case "chosen":
      case "removed":
        return this.reload();
      default:
        return false; // An answer to an operation, or what a later server tells.
    }
    this.seq = seq;
    return true;
  }

  private onDeleted(): true {
    this.loads++;
    this.state = "deleted";
    this.entries = [];
    this.queue = [];
    this.current = null;
    return true;
  }

  private reload(): false {
    this.loading = this.load();
    return false;
  }

  private tell(): void {
    for (const listener of [...this.listeners]) listener();
  }
}
