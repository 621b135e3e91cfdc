/** Where questions are typed. It stays usable while answers stream. */

import { h, icon, setText } from "./dom.ts";
import type { OnBusy } from "./pane.ts";
import { strings } from "./strings.ts";

/** How tall the field grows before it scrolls, in pixels. */
const MAX_HEIGHT = 200;
const MODEL_KEY = "tidewire.model";
const BUSY_KEY = "tidewire.on_busy";

export class Composer {
  readonly element: HTMLFormElement;
  readonly input: HTMLTextAreaElement;
  private readonly models = h("select", { class: "models", testid: "models", "aria-label": strings.composer.model });
  private readonly modelBox = h("label", { class: "model-box", hidden: true }, this.models);
  private readonly busy: HTMLSelectElement;
  private readonly busyBox: HTMLElement;
  private readonly hint = h("span", { class: "hint" }, strings.composer.hint);
  private readonly storage: Storage | undefined;

  constructor(onSend: (question: string) => void, storage: Storage | undefined) {
    this.storage = storage;
    const send = h(
      "button",
      {
        type: "submit",
        class: "send",
        testid: "send",
        "aria-label": strings.composer.send,
        title: strings.composer.send,
        disabled: true,
      },
      icon("send"),
    );
    const choices = Object.entries(strings.composer.busy).map(([value, label]) => h("option", { value }, label));
    this.busy = h("select", { class: "models", testid: "on-busy", "aria-label": strings.composer.onBusy }, ...choices);
    this.busy.value = storage?.getItem(BUSY_KEY) ?? "queue";
    if (!this.busy.value) this.busy.value = "queue";
    this.busy.addEventListener("change", () => storage?.setItem(BUSY_KEY, this.busy.value));
    this.busyBox = h(
      "label",
      { class: "busy-box", title: strings.composer.onBusy, hidden: true },
      h("span", {}, strings.composer.onBusyShort),
      this.busy,
    );
    this.input = h("textarea", {
      id: "question",
      rows: 1,
      dir: "auto",
      testid: "composer",
      placeholder: strings.composer.placeholder,
      "aria-label": strings.composer.label,
      enterkeyhint: "send",
      oninput: () => {
        send.disabled = this.input.value.trim() === "";
        this.fit();
      },
      onkeydown: (event: KeyboardEvent) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.element.requestSubmit();
      },
    });
    this.element = h(
      "form",
      {
        class: "composer",
        onsubmit: (event: Event) => {
          event.preventDefault();
          const question = this.input.value.trim();
          if (!question) return;
          this.input.value = "";
          send.disabled = true;
          this.fit();
          onSend(question);
        },
      },
      h(
        "div",
        { class: "composer-box" },
        this.input,
        h("div", { class: "composer-row" }, this.modelBox, this.busyBox, this.hint, send),
      ),
    );
    this.models.addEventListener("change", () => storage?.setItem(MODEL_KEY, this.models.value));
  }

  /** The chosen model; undefined if the server did not say which there are. */
  get model(): string | undefined {
    return this.models.value || undefined;
  }

  /** What a question does to the answer that runs. */
  get onBusy(): OnBusy {
    return this.busy.value as OnBusy;
  }

  /** Where the next question goes: whether something runs there, and its title if several stand side by side. */
  aim(busy: boolean, title: string | undefined): void {
    this.busyBox.hidden = !busy;
    this.input.placeholder = title === undefined ? strings.composer.placeholder : strings.composer.placeholderIn(title);
    setText(this.hint, busy ? strings.composer.hintBusy : strings.composer.hint);
  }

  /** Put a text back that was taken back, unless something else was begun. */
  putBack(text: string): void {
    if (this.input.value.trim()) return;
    this.input.value = text;
    this.input.dispatchEvent(new Event("input"));
    this.input.focus();
  }

  /** What stands there; the field is empty afterwards. */
  take(): string {
    const question = this.input.value.trim();
    this.input.value = "";
    this.input.dispatchEvent(new Event("input"));
    return question;
  }

  offerModels(names: string[]): void {
    this.models.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    const chosen = this.storage?.getItem(MODEL_KEY) ?? "";
    this.models.value = [chosen, "default"].find((name) => names.includes(name)) ?? names[0] ?? "";
    this.modelBox.hidden = names.length < 2;
  }

  private fit(): void {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, MAX_HEIGHT)}px`;
  }
}
