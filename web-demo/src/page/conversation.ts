/**
 * One conversation as the server keeps it: a tree of entries, the branch that is chosen, who is answered and who waits.
 * Pages and events go in, turns to be shown come out. No I/O.
 */

import type { ConversationFrame, ErrorBody, HistoryPage, MessageNotice, Usage } from "../client/index.ts";

/** What is known of how an answer ended. */
export interface Facts {
  model?: string;
  target?: string;
  attempts?: number;
  usage?: Usage;
  cost_usd?: number;
  prompt?: { name: string; version: string };
  finish_reason?: string;
  error?: ErrorBody;
  /** SHA-256 of the whole text in UTF-8, in lower-case hexadecimal. */
  text_sha256?: string;
}

export interface Entry extends Facts {
  id: string;
  parent: string | null;
  role: string;
  /** `running`, or how it ended: `done`, `failed`, `cancelled`, `interrupted`. */
  state: string;
  /** The visible text; undefined if it streams, or streamed, to this connection. */
  text: string | undefined;
  /** Large texts that are still to be fetched, see `large`. */
  refs: string[];
}

/** A question with its answer, as far as there is one. */
export interface Turn {
  /** The answer's message id; the question's entry id if nobody answers it. */
  id: string;
  question: Entry | undefined;
  answer: Entry | undefined;
  /** What was asked, where the question is no entry yet. */
  asked: string;
  /** Its place in the queue, from 1; 0: it does not wait. */
  position: number;
}

/** Asked for here, and not yet an entry of the conversation. */
export interface Pending {
  id: string;
  /** Undefined: the entry `parent` is to be answered once more. */
  text: string | undefined;
  parent: string | undefined;
  /** It will not run. */
  refused: boolean;
}

const ROOT = "";
/** So many entries at the end of a branch are enough to show it; earlier ones are asked for when they are wanted. */
const ENOUGH = 20;

export class Conversation {
  readonly id: string;
  title = "";
  tip: string | undefined;
  /** The message that is being answered. */
  current: string | undefined;
  queue: string[] = [];
  /** Whether a page was read. */
  known = false;
  deleted = false;
  /** What waits and was asked on another device: message id → what was asked. */
  readonly waiting = new Map<string, string>();
  private readonly entries = new Map<string, Entry>();
  private readonly below = new Map<string, string[]>();
  /** Large texts that were fetched, by their hash. */
  private readonly large = new Map<string, string>();
  private seq = 0;

  constructor(id: string) {
    this.id = id;
  }

  /** A page of its history. Entries that have ended since it was read stay as they are. */
  page(frame: HistoryPage): void {
    for (const shown of frame.messages) this.put(shown);
    this.known = true;
    if ((frame.seq ?? 0) < this.seq) return;
    this.seq = frame.seq ?? 0;
    this.title = frame.title ?? "";
    this.tip = frame.tip ?? undefined;
    this.current = frame.current ?? undefined;
    this.queue = frame.queue ?? [];
  }

  /** A new entry, or one that has ended. */
  notice(frame: MessageNotice): void {
    this.seq = frame.seq ?? this.seq;
    const known = this.entries.has(frame.id);
    this.put({ ...frame });
    if (!known) this.tip = frame.id;
  }

  /** Something that happened to it. True: the branch that is chosen now has to be read anew. */
  event(frame: ConversationFrame): boolean {
    this.seq = frame.seq ?? this.seq;
    switch (frame.op) {
      case "created":
      case "renamed":
        this.title = String(frame.title ?? this.title);
        break;
      case "chosen":
        this.tip = String(frame.tip);
        return !this.whole();
      case "queue":
        this.current = String(frame.current ?? "") || undefined;
        this.queue = frame.queue as string[];
        break;
      case "removed":
        this.remove(String(frame.entry), String(frame.tip ?? ""));
        break;
      case "deleted":
        this.deleted = true;
        break;
      case "reset":
        return true;
      default:
    }
    return false;
  }

  entry(id: string): Entry | undefined {
    return this.entries.get(id);
  }

  /** Everything below the same parent, itself included, oldest first. */
  siblings(entry: Entry): string[] {
    return this.below.get(entry.parent ?? ROOT) ?? [entry.id];
  }

  /** A large text was fetched: `json` is the part as the server keeps it. */
  fetched(ref: string, json: string): void {
    const part = JSON.parse(json) as unknown;
    this.large.set(ref, textOf([part]));
  }

  /** The text of an entry with the large ones in their places, as far as they were fetched. */
  textOf(entry: Entry): string {
    return (entry.text ?? "") + entry.refs.map((ref) => this.large.get(ref) ?? "").join("");
  }

  /** What is still to be fetched to show the chosen branch. */
  missing(): string[] {
    return this.branch().flatMap((entry) => entry.refs.filter((ref) => !this.large.has(ref)));
  }

  /** What is shown, oldest first: the chosen branch, then what waits. */
  turns(pending: readonly Pending[]): Turn[] {
    const turns: Turn[] = [];
    let question: Entry | undefined;
    const put = (answer: Entry | undefined): void => {
      const id = answer?.id ?? question?.id;
      if (id !== undefined) turns.push({ id, question, answer, asked: "", position: 0 });
      question = undefined;
    };
    for (const entry of this.before(pending)) {
      if (entry.role === "assistant") put(entry);
      else if (entry.role === "user") {
        if (question) put(undefined);
        question = entry;
      }
    }
    put(undefined);
    return [...turns, ...this.waitingTurns(pending)];
  }

  /** The chosen branch, up to where another version was just asked for. */
  private before(pending: readonly Pending[]): Entry[] {
    const branch = this.branch();
    const asked = pending.find(
      ({ id, parent, refused }) =>
        parent !== undefined && !refused && !this.queue.includes(id) && !this.entries.has(id),
    );
    if (!asked) return branch;
    const at = branch.findIndex(({ id }) => id === asked.parent);
    return at < 0 && asked.parent !== this.id ? branch : branch.slice(0, asked.text === undefined ? at : at + 1);
  }

  private waitingTurns(pending: readonly Pending[]): Turn[] {
    const mine = new Map(pending.map((each) => [each.id, each]));
    const places = new Map(this.queue.map((id, at) => [id, at + 1]));
    // What has no place yet was sent last.
    const ids = new Set([...this.queue, ...mine.keys()]);
    return [...ids].flatMap((id) => {
      if (this.entries.has(id)) return [];
      const asked = mine.get(id);
      const question = asked?.text === undefined ? this.entries.get(asked?.parent ?? "") : undefined;
      const text = asked?.text ?? this.waiting.get(id) ?? "";
      return [{ id, question, answer: undefined, asked: text, position: places.get(id) ?? 0 }];
    });
  }

  /** Ids that wait and of which it isn't known here what was asked. */
  strangers(pending: readonly Pending[]): string[] {
    const mine = new Set(pending.map(({ id }) => id));
    return this.queue.filter((id) => !mine.has(id) && !this.waiting.has(id) && !this.entries.has(id));
  }

  private branch(): Entry[] {
    const found: Entry[] = [];
    let entry = this.tip === undefined ? undefined : this.entries.get(this.tip);
    while (entry) {
      found.unshift(entry);
      entry = entry.parent === null ? undefined : this.entries.get(entry.parent);
    }
    return found;
  }

  /** The first entry that is known of the chosen branch, if there are earlier ones: what a page may come before. */
  get older(): string | undefined {
    const first = this.branch()[0];
    return first && first.parent !== null ? first.id : undefined;
  }

  /** Whether enough of the chosen branch is known to be shown. */
  private whole(): boolean {
    const branch = this.branch();
    return branch[0]?.parent === null || branch.length >= ENOUGH;
  }

  private put(shown: Record<string, unknown>): void {
    const id = String(shown.id);
    const before = this.entries.get(id);
    if (before && before.state !== "running" && shown.state === "running" && before.state !== "failed") return;
    const { content, siblings, created: _, conversation: __, seq: ___, type: ____, ...told } = shown;
    const parent = (told.parent as string | null | undefined) ?? before?.parent ?? null;
    const earlier = told.state === "running" ? undefined : before?.text;
    const text = content === undefined || content === null ? earlier : textOf(content);
    this.entries.set(id, { ...(told as unknown as Entry), id, parent, text, refs: refsOf(content) });
    const around = this.below.get(parent ?? ROOT) ?? [];
    this.below.set(parent ?? ROOT, [...new Set([...((siblings as string[] | undefined) ?? []), ...around, id])]);
  }

  private remove(id: string, tip: string): void {
    const parent = this.entries.get(id)?.parent ?? ROOT;
    this.below.set(
      parent,
      (this.below.get(parent) ?? []).filter((each) => each !== id),
    );
    this.entries.delete(id);
    this.tip = tip || undefined;
  }
}

/** The visible text of a message's content, or of an input: a text, parts, a message, or several. */
export function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (Array.isArray(content)) return content.map(textOf).join("");
  if (typeof content !== "object" || content === null) return "";
  const { text, content: inner } = content as { text?: unknown; content?: unknown };
  return typeof text === "string" ? text : textOf(inner);
}

function refsOf(content: unknown): string[] {
  const parts = Array.isArray(content) ? (content as { type?: string; ref?: string }[]) : [];
  return parts.flatMap(({ type, ref }) => (type === "text" && ref ? [ref] : []));
}
