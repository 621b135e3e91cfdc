/** What was asked: a bubble that can be edited, which makes another branch. */

import { Chooser } from "./chooser.ts";
import type { Conversation, Turn } from "./conversation.ts";
import { action, h, setText } from "./dom.ts";
import { strings } from "./strings.ts";

interface Actions {
  edit(text: string): void;
  choose(entry: string): void;
}

export class QuestionView {
  readonly element: HTMLElement;
  private readonly bubble = h("div", { class: "bubble", dir: "auto" });
  private readonly edit: HTMLButtonElement;
  private readonly chooser: Chooser;
  private readonly field = h("textarea", {
    dir: "auto",
    rows: 2,
    testid: "edit-input",
    "aria-label": strings.edit.label,
  });
  private readonly form: HTMLFormElement;
  text = "";

  constructor(actions: Actions) {
    this.edit = action("edit", strings.actions.edit, () => this.open());
    this.chooser = new Chooser(strings.branches.questions, (entry) => actions.choose(entry));
    this.form = h(
      "form",
      {
        class: "edit",
        hidden: true,
        onsubmit: (event: Event) => {
          event.preventDefault();
          const text = this.field.value.trim();
          this.close();
          if (text && text !== this.text) actions.edit(text);
        },
        onkeydown: (event: KeyboardEvent) => {
          if (event.key === "Escape") {
            event.preventDefault();
            this.close();
          } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            this.form.requestSubmit();
          }
        },
      },
      this.field,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "quiet", onclick: () => this.close() }, strings.edit.cancel),
        h("button", { type: "submit", class: "primary", testid: "edit-send" }, strings.edit.send),
      ),
    );
    this.element = h(
      "div",
      { class: "question", testid: "question" },
      h("span", { class: "visually-hidden" }, strings.you),
      this.bubble,
      this.form,
      h("div", { class: "question-actions" }, this.chooser.element, this.edit),
    );
  }

  /** `editable`: its answer has ended. */
  show(conversation: Conversation, turn: Turn, editable: boolean): void {
    const { question } = turn;
    this.text = question ? conversation.textOf(question) : turn.asked;
    setText(this.bubble, this.text);
    this.element.hidden = !this.text;
    this.edit.hidden = !editable || !question;
    this.chooser.show(conversation, question);
  }

  private open(): void {
    this.field.value = this.text;
    this.form.hidden = false;
    this.bubble.hidden = true;
    this.field.focus();
  }

  private close(): void {
    this.form.hidden = true;
    this.bubble.hidden = false;
    this.edit.focus();
  }
}
