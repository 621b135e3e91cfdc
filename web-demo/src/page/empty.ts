/** What a chat shows before anything was asked in it. */

import { h, icon } from "./dom.ts";
import { strings } from "./strings.ts";

interface Actions {
  ask(question: string): void;
  /** Each in a chat of its own, side by side. */
  several(questions: readonly string[]): void;
}

export function emptyState(actions: Actions): HTMLElement {
  const card = (title: string, text: string, extra: string, onclick: () => void): HTMLElement =>
    h(
      "button",
      { type: "button", class: `card ${extra}`, testid: "suggestion", onclick },
      h("strong", {}, title),
      h("span", {}, text),
    );
  const { empty, suggestions, threeAtOnce } = strings;
  return h(
    "div",
    { class: "empty", testid: "empty" },
    h("span", { class: "mark large" }, icon("wave")),
    h("h2", {}, empty.title),
    h("p", {}, empty.text),
    h(
      "div",
      { class: "cards" },
      ...suggestions.map(({ title, text }) => card(title, text, "", () => actions.ask(text))),
      card(empty.several, empty.severalHint, "several", () => actions.several(threeAtOnce)),
    ),
  );
}
