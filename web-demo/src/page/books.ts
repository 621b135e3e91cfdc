/** What the answers of this page cost, by feature: the figures of their `done` frames. */

import { h, setText } from "./dom.ts";
import { draw } from "./frame.ts";
import { strings } from "./strings.ts";

interface Sum {
  answers: number;
  tokens: number;
  cost: number;
}

const text = strings.panel.books;

export class Books {
  readonly element: HTMLElement;
  private readonly rows = new Map<string, { sum: Sum; cells: HTMLElement[] }>();
  private readonly body = h("tbody", {});
  private readonly counted = new Set<string>();

  constructor() {
    this.element = h(
      "table",
      { class: "books", testid: "books" },
      h("caption", { class: "visually-hidden" }, text.caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ...[text.feature, text.answers, text.tokens, text.cost].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      this.body,
    );
  }

  /** Book an answer; the same id is booked once. */
  book(id: string, feature: string, tokens: number, cost: number): void {
    if (this.counted.has(id)) return;
    this.counted.add(id);
    for (const name of [feature, text.all]) {
      const { sum } = this.row(name);
      sum.answers++;
      sum.tokens += tokens;
      sum.cost += cost;
    }
    draw(this.render);
  }

  private row(name: string): { sum: Sum; cells: HTMLElement[] } {
    let row = this.rows.get(name);
    if (row) return row;
    const cells = [h("td", {}), h("td", {}), h("td", {})];
    row = { sum: { answers: 0, tokens: 0, cost: 0 }, cells };
    this.rows.set(name, row);
    const label = name === text.all ? name : (text.features[name] ?? name);
    const element = h(
      "tr",
      { class: name === text.all ? "total" : undefined },
      h("th", { scope: "row" }, label),
      ...cells,
    );
    const total = this.body.querySelector(".total");
    this.body.insertBefore(element, total);
    return row;
  }

  private readonly render = (): void => {
    for (const { sum, cells } of this.rows.values()) {
      const figures = [String(sum.answers), sum.tokens.toLocaleString(), strings.meta.cost(sum.cost)];
      cells.forEach((cell, at) => {
        setText(cell, figures[at] ?? "");
      });
    }
  };
}
