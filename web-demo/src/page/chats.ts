/** The user's conversations as the server lists them, the latest first. What is shown of them; no I/O. */

export interface Chat {
  id: string;
  title: string;
  /** Unix seconds of the last change. */
  updated: number;
  /** Whether an answer runs or waits in it. */
  busy: boolean;
}

interface Listed {
  conversation: string;
  title?: string | null;
  updated?: number;
  current?: string | null;
  queue?: string[];
}

export class Chats {
  /** `before` of the next page; undefined: all are known. */
  next: number | undefined;
  private chats = new Map<string, Chat>();
  /** Asked in here, and not in any list of the server yet. */
  private readonly fresh = new Map<string, Chat>();
  private readonly deleted = new Set<string>();

  /** A page of the list: the newest ones, or those before `before`. */
  listed(found: readonly Listed[], next: number | undefined, before: number | undefined): void {
    const from = next === undefined ? 0 : (found.at(-1)?.updated ?? 0);
    // What should be on this page and isn't is gone, or has moved up.
    const kept = [...this.chats.values()].filter(
      ({ updated }) => updated < from || (before !== undefined && updated >= before),
    );
    const page = found.map(({ conversation, title, updated, current, queue }) => ({
      id: conversation,
      title: title ?? "",
      updated: updated ?? 0,
      busy: !!current || (queue?.length ?? 0) > 0,
    }));
    this.chats = new Map([...kept, ...page].map((chat) => [chat.id, chat]));
    for (const { id } of page) this.fresh.delete(id);
    if (before !== undefined || kept.length === 0) this.next = next; // Else more than this page is known.
  }

  /** One that is open on this page, as it stands there. */
  seen(chat: Chat): void {
    const known = this.chats.get(chat.id);
    if (known) Object.assign(known, { title: chat.title, busy: chat.busy });
    else this.fresh.set(chat.id, chat);
  }

  renamed(id: string, title: string): void {
    const chat = this.chats.get(id) ?? this.fresh.get(id);
    if (chat) chat.title = title;
  }

  remove(id: string): void {
    this.deleted.add(id);
    this.chats.delete(id);
    this.fresh.delete(id);
  }

  get(id: string): Chat | undefined {
    return this.chats.get(id) ?? this.fresh.get(id);
  }

  /** The latest first; with `wanted`, those whose title has it. */
  shown(wanted = ""): Chat[] {
    const looked = wanted.trim().toLocaleLowerCase();
    return [...this.fresh.values(), ...this.chats.values()]
      .filter(({ id, title }) => !this.deleted.has(id) && title.toLocaleLowerCase().includes(looked))
      .sort((a, b) => b.updated - a.updated);
  }
}
