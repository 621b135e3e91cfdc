/** Where questions are typed. It stays usable while answers stream. */

import { h, icon } from "./dom.ts";
import { strings } from "./strings.ts";

/** How tall the field grows before it scrolls, in pixels. */
const MAX_HEIGHT = 200;
const MODEL_KEY = "tidewire.model";

export class Composer {
  readonly element: HTMLFormElement;
  readonly input: HTMLTextAreaElement;
  private readonly models = h("select", { class: "models", testid: "models", "aria-label": strings.composer.model });
  private readonly modelBox = h("label", { class: "model-box", hidden: true }, this.models);
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
        h("div", { class: "composer-row" }, this.modelBox, h("span", { class: "hint" }, strings.composer.hint), send),
      ),
    );
    this.models.addEventListener("change", () => storage?.setItem(MODEL_KEY, this.models.value));
  }

  /** The chosen model; undefined if the server did not say which there are. */
  get model(): string | undefined {
    return this.models.value || undefined;
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
