/** The list of chats; a drawer on narrow screens. */

import { h, icon } from "./dom.ts";
import { strings } from "./strings.ts";

export interface ChatEntry {
  id: string;
  title: string;
  open: number;
}

interface Actions {
  newChat(): void;
  choose(chat: string): void;
  remove(chat: string): void;
}

export class Sidebar {
  readonly element: HTMLElement;
  readonly menuButton: HTMLButtonElement;
  private readonly list = h("ul", { class: "chats", testid: "chats" });
  private readonly actions: Actions;

  constructor(actions: Actions) {
    this.actions = actions;
    this.menuButton = h(
      "button",
      {
        type: "button",
        class: "icon-button menu",
        testid: "menu",
        "aria-label": strings.openMenu,
        "aria-expanded": "false",
        onclick: () => this.toggle(),
      },
      icon("menu"),
    );
    this.element = h(
      "nav",
      { class: "sidebar", "aria-label": strings.chats },
      h("div", { class: "brand" }, h("span", { class: "mark" }, icon("wave")), h("span", {}, strings.brand)),
      h(
        "button",
        { type: "button", class: "new-chat", testid: "new-chat", onclick: () => this.close(() => actions.newChat()) },
        icon("plus"),
        strings.newChat,
      ),
      this.list,
    );
    document.addEventListener("pointerdown", (event) => {
      const target = event.target as Node;
      if (!this.element.contains(target) && !this.menuButton.contains(target)) this.toggle(false);
    });
  }

  show(chats: ChatEntry[], current: string): void {
    const rows = chats.map((chat) =>
      h(
        "li",
        { class: chat.id === current ? "current" : undefined },
        h(
          "button",
          {
            type: "button",
            class: "chat",
            dir: "auto",
            "aria-current": chat.id === current ? "true" : undefined,
            onclick: () => this.close(() => this.actions.choose(chat.id)),
          },
          chat.open > 0 && h("span", { class: "dot" }),
          h("span", {}, chat.title),
        ),
        h(
          "button",
          {
            type: "button",
            class: "icon-button remove",
            "aria-label": `${strings.deleteChat}: ${chat.title}`,
            title: strings.deleteChat,
            onclick: () => this.actions.remove(chat.id),
          },
          icon("trash"),
        ),
      ),
    );
    this.list.replaceChildren(...rows);
  }

  private toggle(open = !this.element.classList.contains("open")): void {
    this.element.classList.toggle("open", open);
    this.menuButton.setAttribute("aria-expanded", String(open));
  }

  private close(then: () => void): void {
    this.toggle(false);
    then();
  }
}
