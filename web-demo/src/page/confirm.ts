/** A box that asks before something is gone for good. */

import { h, setText } from "./dom.ts";
import { strings } from "./strings.ts";

export class ConfirmDialog {
  readonly element: HTMLDialogElement;
  private readonly title = h("h2", { id: "confirm-title" });
  private readonly text = h("p", {});
  private agreed: (() => void) | undefined;

  constructor() {
    const button = (kind: string, label: string, agree: boolean): HTMLButtonElement =>
      h(
        "button",
        {
          type: "button",
          class: kind,
          testid: agree ? "confirm" : "dismiss",
          onclick: () => {
            this.element.close();
            if (agree) this.agreed?.();
          },
        },
        label,
      );
    this.element = h(
      "dialog",
      { class: "confirm", "aria-labelledby": "confirm-title", testid: "confirm-dialog" },
      this.title,
      this.text,
      h(
        "div",
        { class: "buttons" },
        button("quiet", strings.confirm.keep, false),
        button("primary bad", strings.confirm.delete, true),
      ),
    );
  }

  /** Ask; `agreed` is called if the answer is yes. */
  ask(title: string, text: string, agreed: () => void): void {
    setText(this.title, title);
    setText(this.text, text);
    this.agreed = agreed;
    this.element.showModal();
  }
}
