/** The list of chats; a drawer on narrow screens. */

import type { Chat } from "./chats.ts";
import { h, type IconName, icon, setText } from "./dom.ts";
import { strings } from "./strings.ts";

/** From so many chats on there is a field to look for one. */
const SEARCH_FROM = 8;
/** Nearer to the end of the list than this, in pixels, more of it is asked for. */
const MORE_WITHIN = 200;

const text = strings.chats;

interface Actions {
  newChat(): void;
  choose(chat: string): void;
  /** Open it beside what is open. */
  beside(chat: string): void;
  rename(chat: string, title: string): void;
  remove(chat: string): void;
  /** The end of the list is near, or all of it is looked through. */
  more(): void;
}

interface Row {
  element: HTMLElement;
  open: HTMLButtonElement;
  dot: HTMLElement;
  title: HTMLElement;
  tools: HTMLButtonElement[];
}

export class Sidebar {
  readonly element: HTMLElement;
  readonly menuButton: HTMLButtonElement;
  private readonly list = h("ul", { class: "chats", testid: "chats" });
  private readonly none = h("p", { class: "fine no-chats", hidden: true });
  private readonly search: HTMLInputElement;
  private readonly searchBox: HTMLElement;
  private readonly rows = new Map<string, Row>();
  private readonly actions: Actions;
  /** The chat whose title is being edited: its row stays as it is. */
  private editing: string | undefined;
  private last: [(wanted: string) => Chat[], ReadonlySet<string>] = [() => [], new Set()];

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
    this.search = h("input", {
      type: "search",
      testid: "search",
      placeholder: text.search,
      "aria-label": text.search,
      oninput: () => {
        this.actions.more();
        this.render();
      },
    });
    this.searchBox = h("label", { class: "search", hidden: true }, icon("search"), this.search);
    this.element = h(
      "nav",
      { class: "sidebar", "aria-label": text.label },
      h("div", { class: "brand" }, h("span", { class: "mark" }, icon("wave")), h("span", {}, strings.brand)),
      h(
        "button",
        { type: "button", class: "new-chat", testid: "new-chat", onclick: () => this.close(() => actions.newChat()) },
        icon("plus"),
        text.new,
      ),
      this.searchBox,
      this.none,
      this.list,
    );
    this.list.addEventListener("scroll", () => this.onScroll(), { passive: true });
    document.addEventListener("pointerdown", (event) => {
      const target = event.target as Node;
      if (!this.element.contains(target) && !this.menuButton.contains(target)) this.toggle(false);
    });
  }

  /** Whether titles are looked through: then all of them are wanted. */
  get searching(): boolean {
    return this.search.value.trim() !== "";
  }

  /** `shown`: the chats whose titles have a text; `open`: the ids of those that are open. */
  show(shown: (wanted: string) => Chat[], open: ReadonlySet<string>): void {
    this.last = [shown, open];
    this.render();
  }

  private render(): void {
    const [shown, open] = this.last;
    const chats = shown(this.search.value);
    this.searchBox.hidden = !this.searching && chats.length < SEARCH_FROM;
    this.none.hidden = chats.length > 0;
    setText(this.none, this.searching ? text.notFound : text.none);
    const ids = new Set(chats.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    chats.forEach((chat, at) => {
      const row = this.rows.get(chat.id) ?? this.row(chat.id);
      this.fill(row, chat, open.has(chat.id));
      const there = this.list.children[at];
      if (there !== row.element) this.list.insertBefore(row.element, there ?? null);
    });
    this.onScroll();
  }

  private fill(row: Row, chat: Chat, open: boolean): void {
    const title = chat.title || strings.untitled;
    row.element.classList.toggle("current", open);
    if (open) row.open.setAttribute("aria-current", "true");
    else row.open.removeAttribute("aria-current");
    row.dot.hidden = !chat.busy;
    row.open.title = title;
    setText(row.title, title);
    for (const tool of row.tools) tool.setAttribute("aria-label", `${tool.title}: ${title}`);
  }

  private row(id: string): Row {
    const title = h("span", { class: "chat-title" });
    const dot = h("span", { class: "dot", role: "img", "aria-label": text.busy, hidden: true });
    const open = h(
      "button",
      { type: "button", class: "chat", dir: "auto", onclick: () => this.close(() => this.actions.choose(id)) },
      dot,
      title,
    );
    const tools = [
      tool("beside", text.beside, () => this.close(() => this.actions.beside(id))),
      tool("edit", text.rename, () => this.edit(id)),
      tool("trash", text.delete, () => this.actions.remove(id)),
    ];
    const element = h("li", { testid: "chat", "data-id": id }, open, h("span", { class: "chat-tools" }, ...tools));
    const row = { element, open, dot, title, tools };
    this.rows.set(id, row);
    return row;
  }

  private edit(id: string): void {
    const row = this.rows.get(id);
    if (!row || this.editing !== undefined) return;
    this.editing = id;
    const field = h("input", {
      class: "rename",
      testid: "rename",
      dir: "auto",
      maxlength: 120,
      "aria-label": text.renameLabel,
      value: row.title.textContent ?? "",
    });
    const done = (keep: boolean): void => {
      if (this.editing !== id) return;
      this.editing = undefined;
      const title = field.value.trim();
      field.replaceWith(row.open);
      row.open.focus();
      if (keep && title && title !== row.title.textContent) this.actions.rename(id, title);
    };
    field.addEventListener("blur", () => done(true));
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      done(event.key === "Enter");
    });
    row.open.replaceWith(field);
    field.select();
    field.focus();
  }

  private onScroll(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.list;
    if (clientHeight > 0 && scrollHeight - scrollTop - clientHeight < MORE_WITHIN) this.actions.more();
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

function tool(name: IconName, label: string, onclick: () => void): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: "icon-button", testid: `chat-${name}`, title: label, onclick },
    icon(name),
  );
}
