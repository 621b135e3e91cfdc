/** Small plots as SVG, drawn by hand: a line over time, or several stacked. */

const NS = "http://www.w3.org/2000/svg";

function svg<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Record<string, string | number>) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

/** A line without axes, as wide as its box. It is told the figures in words by its label. */
export class Spark {
  readonly element: SVGSVGElement;
  private readonly line = svg("polyline", { class: "spark-line", "vector-effect": "non-scaling-stroke" });
  private readonly width = 100;
  private readonly height = 24;

  constructor(label: string) {
    this.element = svg("svg", {
      viewBox: `0 0 ${this.width} ${this.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      role: "img",
      "aria-label": label,
    });
    this.element.append(this.line);
  }

  show(values: readonly number[], most = Math.max(1, ...values)): void {
    const step = this.width / Math.max(1, values.length - 1);
    const y = (value: number): number => this.height - 2 - (value / most) * (this.height - 4);
    this.line.setAttribute(
      "points",
      values.map((value, at) => `${(at * step).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    );
  }
}
