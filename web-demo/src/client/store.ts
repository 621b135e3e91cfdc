/** Keeps the open messages, and the cursors of conversations, over a reload. */

import type { SavedMessage } from "./message.ts";

/** What is needed of `sessionStorage` or `localStorage`. */
export interface KeyValue {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

/** Where they are kept; without a storage, or with one that is full or blocked, nowhere. */
export class OpenStore {
  private readonly storage: KeyValue | undefined;
  private readonly key: string;

  constructor(storage: KeyValue | undefined, key = "tidewire.open") {
    this.storage = storage;
    this.key = key;
  }

  /** The open messages. */
  load(): SavedMessage[] {
    const found = this.read(this.key);
    return Array.isArray(found) ? found.filter((entry) => typeof entry?.id === "string") : [];
  }

  /** Conversation → the last `seq` of its log that was told. */
  cursors(): Record<string, number> {
    const found = Object.entries(this.read(this.cursorsKey) ?? {});
    return Object.fromEntries(found.filter(([, seq]) => Number.isSafeInteger(seq))) as Record<string, number>;
  }

  save(messages: SavedMessage[], cursors: Record<string, number>): void {
    this.write(this.key, messages, messages.length === 0);
    this.write(this.cursorsKey, cursors, Object.keys(cursors).length === 0);
  }

  private get cursorsKey(): string {
    return `${this.key}.conversations`;
  }

  private read(key: string): unknown {
    try {
      return JSON.parse(this.storage?.getItem(key) ?? "null");
    } catch {
      return null; // Blocked or damaged storage costs the resume after a reload, nothing else.
    }
  }

  private write(key: string, value: unknown, empty: boolean): void {
    try {
      if (empty) this.storage?.removeItem(key);
      else this.storage?.setItem(key, JSON.stringify(value));
    } catch {
      // Full or blocked: as above.
    }
  }
}
