/** The chats that are open, side by side. Which ones is kept in the tab, so that a reload brings them back. */

import type { ClientEvent } from "../client/index.ts";
import { h } from "./dom.ts";
import { isUnknown, type Pane } from "./pane.ts";

/** So many stand side by side at most. */
export const MOST_PANES = 3;
const KEY = "tidewire.open";

export class Workspace {
  readonly element = h("div", { class: "panes", testid: "panes" });
  panes: Pane[] = [];
  private readonly make: (id: string) => Pane;
  private readonly storage: Storage | undefined;
  private chosen: Pane | undefined;

  constructor(make: (id: string) => Pane, storage: Storage | undefined) {
    this.make = make;
    this.storage = storage;
  }

  /** What was open in this tab. */
  kept(): string[] {
    try {
      const ids = JSON.parse(this.storage?.getItem(KEY) ?? "[]") as unknown;
      return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(0, MOST_PANES) : [];
    } catch {
      return [];
    }
  }

  /** Where the next question goes. */
  get active(): Pane {
    return this.chosen as Pane;
  }

  get full(): boolean {
    return this.panes.length >= MOST_PANES;
  }

  /** Show these and nothing else. `fresh`: the server has nothing of them yet. */
  open(ids: readonly string[], fresh: boolean): void {
    const wanted = new Set(ids);
    for (const pane of this.panes) if (!wanted.has(pane.id)) pane.leave();
    this.panes = ids.map((id) => this.panes.find((pane) => pane.id === id) ?? this.begin(id, fresh));
    this.element.replaceChildren(...this.panes.map(({ element }) => element));
    this.chosen = this.panes.at(-1);
    this.arrange();
  }

  /** Open one more; false if there is no room. */
  add(id: string, fresh: boolean): boolean {
    const there = this.panes.find((pane) => pane.id === id);
    if (!there && this.full) return false;
    const pane = there ?? this.begin(id, fresh);
    if (!there) {
      this.panes.push(pane);
      this.element.append(pane.element);
    }
    this.activate(pane);
    return true;
  }

  /** Close one; false if it is the last. */
  close(pane: Pane): boolean {
    if (this.panes.length < 2) return false;
    pane.leave();
    pane.element.remove();
    this.panes = this.panes.filter((each) => each !== pane);
    if (this.chosen === pane) this.chosen = this.panes[0];
    this.arrange();
    return true;
  }

  activate(pane: Pane): void {
    this.chosen = pane;
    this.arrange();
  }

  /** Hand an event to the pane, or panes, that it is about. */
  onEvent(event: ClientEvent): void {
    if (event.type === "history" || event.type === "notice" || event.type === "conversation") {
      const pane = this.panes.find(({ id }) => id === event.frame.conversation);
      if (event.type === "history") pane?.onHistory(event.frame);
      else if (event.type === "notice") pane?.onNotice(event.frame);
      else pane?.onConversation(event.frame);
    } else if (event.type === "error" && event.re === "history" && isUnknown(event.error)) {
      this.panes.find(({ id }) => id === event.conversation)?.onUnknown();
    } else if (event.type === "status") {
      for (const pane of this.panes) pane.renderSoon();
    } else if ("message" in event && event.message) {
      const { message } = event;
      this.panes.find((pane) => pane.has(message))?.onMessage(message);
    }
  }

  private begin(id: string, fresh: boolean): Pane {
    const pane = this.make(id);
    pane.open(fresh);
    return pane;
  }

  private arrange(): void {
    this.element.dataset.size = String(this.panes.length);
    for (const pane of this.panes) pane.element.classList.toggle("active", pane === this.chosen);
    try {
      this.storage?.setItem(KEY, JSON.stringify(this.panes.map(({ id }) => id)));
    } catch {
      // Full or blocked storage: a reload begins with a new chat.
    }
  }
}
