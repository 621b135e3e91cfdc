/** Keeps the list of conversations current: asks for it, page by page, one request at a time. */

import type { Client, ConversationFrame } from "../client/index.ts";
import { Chats } from "./chats.ts";

/** So many conversations are asked for at once. */
const PAGE = 40;
/** How often the newest page is asked for while the page is looked at, in milliseconds: a title from elsewhere tells nobody. */
const EVERY_MS = 10_000;
/** What happens in one breath is asked about once, this long after, in milliseconds. */
const SOON_MS = 300;

export class History {
  readonly chats = new Chats();
  private readonly client: Client;
  private readonly changed: () => void;
  /** `before` of the page that is being asked for; undefined: the newest one. */
  private asked: { before: number | undefined } | undefined;
  private again = false;
  private clearing = false;
  private timer = 0;

  constructor(client: Client, changed: () => void) {
    this.client = client;
    this.changed = changed;
    setInterval(() => {
      if (document.visibilityState === "visible") this.soon();
    }, EVERY_MS);
    document.addEventListener("visibilitychange", () => this.soon());
  }

  /** A new connection: what was asked on the one before is not answered. */
  onOpen(): void {
    this.asked = undefined;
    this.soon(0);
  }

  /** Something happened that may have changed the list. */
  soon(afterMs = SOON_MS): void {
    if (this.asked) this.again = true;
    if (this.asked || this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      if (this.client.status.phase === "open" && !this.asked) this.ask(undefined);
    }, afterMs);
  }

  /** Ask for older ones, if there are any. */
  more(): void {
    if (!this.asked && this.chats.next !== undefined && this.client.status.phase === "open") this.ask(this.chats.next);
  }

  onList(frame: ConversationFrame): void {
    if (!this.asked) return;
    const { before } = this.asked;
    this.asked = undefined;
    const found = frame.conversations as Parameters<Chats["listed"]>[0];
    this.chats.listed(found, (frame.next as number | null | undefined) ?? undefined, before);
    if (this.clearing) this.clear();
    if (this.again) this.soon();
    this.again = false;
    this.changed();
  }

  rename(id: string, title: string): void {
    this.chats.renamed(id, title);
    this.client.conversation({ op: "rename", conversation: id, title });
    this.changed();
  }

  /** Delete for good, on all devices. */
  remove(id: string): void {
    this.chats.remove(id);
    this.client.conversation({ op: "delete", conversation: id });
    this.changed();
  }

  /** Delete every one, page by page. */
  clear(): void {
    for (const { id } of this.chats.shown()) this.remove(id);
    this.clearing = this.chats.next !== undefined;
    this.more();
  }

  private ask(before: number | undefined): void {
    this.asked = { before };
    this.client.conversation({ op: "list", limit: PAGE, ...(before !== undefined && { before }) });
  }
}
