/** A plot over time as SVG: one line or several, a scale, the last value in words. */

import { h, setText } from "../page/dom.ts";
import { strings } from "../page/strings.ts";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 480;
const HEIGHT = 132;
const LEFT = 40;
const BOTTOM = 18;
const TOP = 8;
const text = strings.operator;

export interface Line {
  name: string;
  /** `good`, `bad`, …: how it is coloured. */
  kind: string;
}

export class Plot {
  readonly element: HTMLElement;
  private readonly lines: Line[];
  private readonly svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img" });
  private readonly paths: SVGElement[];
  private readonly areas: SVGElement[];
  private readonly scale: SVGElement[] = [];
  private readonly value = h("strong", { class: "plot-value" });
  private readonly unit: (value: number) => string;
  private readonly mark: (value: number) => string;
  private readonly least: number;
  private readonly title: string;

  /** `least`: the smallest scale, so that its half is a figure of its own; `mark`: how the scale is written. */
  constructor(
    title: string,
    testid: string,
    lines: Line[],
    unit: (value: number) => string,
    least: number,
    mark: (value: number) => string = unit,
  ) {
    this.mark = mark;
    this.lines = lines;
    this.unit = unit;
    this.least = least;
    this.title = title;
    for (const share of [0, 0.5, 1]) {
      const y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
      this.svg.append(make("line", { x1: LEFT, x2: WIDTH, y1: y, y2: y, class: "plot-grid" }));
      const label = make("text", { x: LEFT - 6, y: y + 3.5, class: "plot-label", "text-anchor": "end" });
      this.scale.push(label);
      this.svg.append(label);
    }
    for (const [x, anchor, name] of [
      [LEFT, "start", text.from],
      [WIDTH, "end", text.now],
    ] as const) {
      const label = make("text", { x, y: HEIGHT - 4, class: "plot-label", "text-anchor": anchor });
      label.textContent = name;
      this.svg.append(label);
    }
    this.areas = lines.map(({ kind }) => make("path", { class: `plot-area plot-${kind}` }));
    this.paths = lines.map(({ kind }) => make("path", { class: `plot-line plot-${kind}` }));
    this.svg.append(...this.areas, ...this.paths);
    const legend = lines.map(({ name, kind }) => h("span", { class: `plot-key plot-${kind}` }, name));
    this.element = h(
      "section",
      { class: "plot-box", testid, "aria-label": title },
      h("div", { class: "row" }, h("h2", {}, title), this.value),
      this.svg as unknown as HTMLElement,
      lines.length > 1 && h("div", { class: "plot-legend" }, ...legend),
    );
  }

  /** `values`: one row per line. */
  show(values: readonly (readonly number[])[]): void {
    const most = nice(Math.max(this.least, ...values.flat()));
    this.scale.forEach((label, index) => {
      setText(label, this.mark((most * index) / 2));
    });
    values.forEach((row, index) => {
      const step = (WIDTH - LEFT) / Math.max(1, row.length - 1);
      const base = HEIGHT - BOTTOM;
      const points = row.map(
        (value, at) => `${(LEFT + at * step).toFixed(1)} ${(base - (value / most) * (base - TOP)).toFixed(1)}`,
      );
      const line = `M${points.join("L")}`;
      this.paths[index]?.setAttribute("d", line);
      this.areas[index]?.setAttribute("d", `${line}L${WIDTH} ${base}L${LEFT} ${base}Z`);
    });
    const now = values.map((row) => row.at(-1) ?? 0);
    setText(this.value, this.unit(now.reduce((sum, value) => sum + value, 0)));
    const words = this.lines.map(({ name }, index) => text.line(name, this.unit(now[index] ?? 0)));
    this.svg.setAttribute("aria-label", text.told(this.title, words));
  }
}

function make(tag: string, attributes: Record<string, string | number>): SVGElement {
  const element = document.createElementNS(NS, tag) as SVGElement;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

/** How something stood over the window: one coloured piece per stretch of time. */
export class Strip {
  readonly element = make("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "strip", role: "img" });
  private shown = "";

  /** `states`: one per step, oldest first; undefined: not known. `words`: the same for who cannot see it. */
  show(states: readonly (string | undefined)[], words: string): void {
    this.element.setAttribute("aria-label", words);
    const told = states.join();
    if (told === this.shown) return;
    this.shown = told;
    const width = 100 / Math.max(1, states.length);
    const pieces: SVGElement[] = [];
    for (let at = 0; at < states.length; ) {
      const state = states[at];
      let end = at + 1;
      while (end < states.length && states[end] === state) end++;
      const box = { x: (at * width).toFixed(2), y: 0, height: 6, width: ((end - at) * width).toFixed(2) };
      pieces.push(make("rect", { ...box, class: `strip-${state ?? "unknown"}` }));
      at = end;
    }
    this.element.replaceChildren(...pieces);
  }
}

/** The next number with a round half: 1, 2 or 4 times a power of ten. */
export function nice(most: number): number {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return ([1, 2, 4, 10].find((factor) => factor * power >= most) ?? 10) * power;
}
