/** The scrolling list of turns. It follows what is written while its end is looked at. */

import { h, icon } from "./dom.ts";
import { strings } from "./strings.ts";

/** Nearer to the end than this, in pixels, the view follows what is written. */
const FOLLOW_WITHIN = 96;

export class Transcript {
  readonly element: HTMLElement;
  private readonly content = h("div", { class: "content" });
  private readonly scroller: HTMLElement;
  private readonly jump: HTMLButtonElement;
  private readonly earlier: HTMLButtonElement;
  private following = true;

  /** `readOlder` is called when what lies before is wanted. */
  constructor(empty: HTMLElement, readOlder: () => void) {
    this.earlier = h(
      "button",
      { type: "button", class: "earlier quiet", testid: "earlier", hidden: true, onclick: readOlder },
      strings.actions.earlier,
    );
    this.scroller = h(
      "div",
      { class: "scroller", testid: "transcript", tabindex: 0, role: "region" },
      empty,
      this.earlier,
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

  /** Show these turns in this order; `earlier`: there are more before them. What is in its place is not touched. */
  show(turns: readonly HTMLElement[], earlier: boolean): void {
    this.earlier.hidden = !earlier;
    turns.forEach((turn, at) => {
      const there = this.content.children[at];
      if (there !== turn) this.content.insertBefore(turn, there ?? null);
    });
  }

  /** `title`: of the chat, so that several side by side are told apart. */
  name(title: string): void {
    this.scroller.setAttribute("aria-label", strings.transcriptOf(title));
  }

  toEnd(): void {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Call before something is put above what is looked at, and the result after it. */
  keepPlace(): () => void {
    const { scrollTop, scrollHeight } = this.scroller;
    return () => {
      if (!this.following) this.scroller.scrollTop = scrollTop + this.scroller.scrollHeight - scrollHeight;
    };
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
