/** Keeps the open messages over a reload. */

import type { SavedMessage } from "./message.ts";

/** What is needed of `sessionStorage` or `localStorage`. */
export interface KeyValue {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export class OpenStore {
  private readonly storage: KeyValue | undefined;
  private readonly key: string;

  constructor(storage: KeyValue | undefined, key = "tidewire.open") {
    this.storage = storage;
    this.key = key;
  }

  load(): SavedMessage[] {
    try {
      return JSON.parse(this.storage?.getItem(this.key) ?? "[]");
    } catch {
      return []; // Blocked or damaged storage costs the resume after a reload, nothing else.
    }
  }

  save(messages: SavedMessage[]): void {
    try {
      if (messages.length === 0) this.storage?.removeItem(this.key);
      else this.storage?.setItem(this.key, JSON.stringify(messages));
    } catch {
      // Full or blocked: as above.
    }
  }
}
