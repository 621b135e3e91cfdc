/** ‹ 2/3 ›: goes to the other branches at one place. */

import type { Conversation, Entry } from "./conversation.ts";
import { h, type IconName, icon, setText } from "./dom.ts";
import { strings } from "./strings.ts";

export class Chooser {
  readonly element = h("span", { class: "chooser", testid: "chooser", role: "group", hidden: true });
  private readonly count = h("span", { "aria-live": "polite" });
  private readonly steps: HTMLButtonElement[];
  private ids: string[] = [];
  private at = 0;

  constructor(label: string, choose: (entry: string) => void) {
    const step = (by: number, name: IconName, title: string): HTMLButtonElement =>
      h(
        "button",
        {
          type: "button",
          class: "action",
          testid: by < 0 ? "previous" : "next",
          "aria-label": title,
          title,
          onclick: () => {
            const id = this.ids[this.at + by];
            if (id !== undefined) choose(id);
          },
        },
        icon(name),
      );
    this.steps = [step(-1, "left", strings.branches.previous), step(1, "right", strings.branches.next)];
    this.element.setAttribute("aria-label", label);
    this.element.append(this.steps[0] as Node, this.count, this.steps[1] as Node);
  }

  show(conversation: Conversation, entry: Entry | undefined): void {
    this.ids = entry ? conversation.siblings(entry) : [];
    this.at = this.ids.indexOf(entry?.id ?? "");
    this.element.hidden = this.ids.length < 2;
    setText(this.count, strings.branches.at(this.at + 1, this.ids.length));
    const [previous, next] = this.steps;
    if (previous) previous.disabled = this.at <= 0;
    if (next) next.disabled = this.at >= this.ids.length - 1;
  }
}
