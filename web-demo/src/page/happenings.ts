/** What happens on the wire, one line each, newest first. */

import type { ClientEvent, Message } from "../client/index.ts";
import { h } from "./dom.ts";
import { draw } from "./frame.ts";
import { strings } from "./strings.ts";

/** So many lines are kept. */
const MOST = 60;
/** Answers are told apart by so many colours. */
const COLOURS = 6;

type Kind = "good" | "warn" | "bad" | "plain";
const text = strings.panel.happenings;

export class Happenings {
  readonly element = h("ol", { class: "happenings", testid: "happenings", tabindex: 0, "aria-label": text.label });
  private readonly numbers = new Map<string, number>();
  private readonly heard = new Set<string>();
  /** Told by `welcome` as resumed: the `accepted` that follows says nothing new. */
  private readonly resumedNow = new Set<string>();
  private waiting: HTMLElement[] = [];

  /** Write down what is worth it. */
  onEvent(event: ClientEvent): void {
    switch (event.type) {
      case "accepted":
        if (this.resumedNow.delete(event.message.id)) break;
        this.add(event.replay ? "good" : "plain", event.replay ? text.attached : text.accepted, event.message);
        break;
      case "attempt": {
        const { attempt, target, mode, reason } = event.info;
        const why = strings.attempts.why(String(reason?.code ?? ""));
        this.add(attempt > 1 ? "warn" : "plain", text.attempt(attempt, target, mode, why), event.message);
        break;
      }
      case "output":
        if (this.heard.has(event.message.id)) break;
        this.heard.add(event.message.id);
        this.add("plain", text.first(event.message.cursor), event.message);
        break;
      case "resyncing":
        this.add("warn", text.resyncing(event.reason), event.message);
        break;
      case "replaced":
        this.add("warn", text.replaced(event.message.cursor), event.message);
        break;
      case "stalled":
        this.add("warn", text.stalled(strings.errors.of(event.error.code)), event.message);
        break;
      case "ended":
        this.ended(event.message);
        break;
      case "welcomed":
        this.add("good", text.welcomed(event.frame.resumed.length));
        for (const { id, seq } of event.frame.resumed) this.resumed(id, seq ?? 0);
        break;
      case "goaway":
        this.add("warn", text.goaway);
        break;
      case "error":
        this.add("bad", strings.errors.of(event.error.code), event.message);
        break;
      default:
    }
  }

  /** A line of the page itself: a button, a lost connection. */
  note(kind: Kind, what: string): void {
    this.add(kind, what);
  }

  private resumed(id: string, seq: number): void {
    this.resumedNow.add(id);
    this.add("good", text.resumed(seq), { id } as Message);
  }

  private ended(message: Message): void {
    const { end } = message;
    if (message.state === "done" && end?.type === "done") {
      this.add("good", text.done(end.seq, end.usage.output_tokens ?? 0, end.cost_usd ?? undefined), message);
    } else if (message.state === "cancelled") {
      this.add("plain", text.cancelled, message);
    } else {
      this.add("bad", strings.errors.of(message.error?.code ?? ""), message);
    }
  }

  private add(kind: Kind, what: string, message?: Message): void {
    const now = new Date();
    const stamp = now.toLocaleTimeString(undefined, { hour12: false });
    this.waiting.unshift(
      h(
        "li",
        { "data-kind": kind },
        h("time", { datetime: now.toISOString() }, stamp),
        message && h("span", { class: `tag tag-${this.number(message.id) % COLOURS}` }, `#${this.number(message.id)}`),
        h("span", { dir: "auto" }, what),
      ),
    );
    draw(this.render);
  }

  private number(id: string): number {
    let number = this.numbers.get(id);
    if (number === undefined) {
      number = this.numbers.size + 1;
      this.numbers.set(id, number);
    }
    return number;
  }

  private readonly render = (): void => {
    this.element.prepend(...this.waiting.slice(0, MOST));
    this.waiting = [];
    while (this.element.childElementCount > MOST) this.element.lastElementChild?.remove();
  };
}
