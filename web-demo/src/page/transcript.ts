/** The scrolling list of turns. Turns of one group stand side by side where there is room. */

import type { TurnView } from "./answer.ts";
import { h, icon } from "./dom.ts";
import { strings } from "./strings.ts";
import type { Turn } from "./turns.ts";

/** Nearer to the end than this, in pixels, the view follows what is written. */
const FOLLOW_WITHIN = 96;

export class Transcript {
  readonly element: HTMLElement;
  private readonly content = h("div", { class: "content" });
  private readonly scroller: HTMLElement;
  private readonly jump: HTMLButtonElement;
  private following = true;

  constructor(empty: HTMLElement) {
    this.scroller = h(
      "div",
      { class: "scroller", testid: "transcript", tabindex: 0, role: "region", "aria-label": strings.transcript },
      empty,
      this.content,
    );
    this.jump = h(
      "button",
      { type: "button", class: "jump", hidden: true, onclick: () => this.toEnd() },
      icon("down"),
      strings.actions.jump,
    );
    this.element = h("div", { class: "transcript" }, this.scroller, this.jump);
    this.scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    // Whatever makes the content grow, text or fonts, is followed.
    new ResizeObserver(() => this.grew()).observe(this.content);
  }

  clear(): void {
    this.content.replaceChildren();
    this.following = true;
  }

  add(turn: Turn, view: TurnView): void {
    let group = this.content.lastElementChild as HTMLElement | null;
    if (group?.dataset.group !== turn.group) {
      group = h("div", { class: "group", "data-group": turn.group });
      this.content.append(group);
    }
    group.append(view.element);
    group.dataset.size = String(Math.min(group.childElementCount, 3));
  }

  toEnd(): void {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  private grew(): void {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.onScroll();
  }

  private onScroll(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < FOLLOW_WITHIN;
    this.jump.hidden = this.following;
  }
}
