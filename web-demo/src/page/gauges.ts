/** What is left of the user's limits. Buckets refill between two words of the server as it says they will. */

import type { Limit } from "../client/index.ts";
import { h, setText } from "./dom.ts";
import { draw } from "./frame.ts";
import { strings } from "./strings.ts";

/** How often a gauge that refills is redrawn, in milliseconds. */
const REFILL_MS = 200;
/** Longer resets than this, in seconds, are not drawn as a refill: that month's money comes back at once. */
const LONGEST_REFILL_SECONDS = 600;
/** Below this share of a limit its gauge warns. */
const LOW = 0.2;

interface Gauge {
  element: HTMLElement;
  meter: HTMLElement;
  bar: HTMLElement;
  figure: HTMLElement;
  limit: Limit;
  toldAt: number;
}

/** What is left of `limit`, `seconds` after the server told of it. */
export function remainingAfter(limit: Limit, seconds: number): number {
  const { remaining, reset_seconds: reset } = limit;
  if (reset <= 0 || reset > LONGEST_REFILL_SECONDS) return remaining;
  return Math.min(limit.limit, remaining + ((limit.limit - remaining) * seconds) / reset);
}

export class Gauges {
  readonly element = h("div", { class: "gauges", testid: "gauges" });
  private readonly gauges = new Map<string, Gauge>();
  private timer = 0;

  /** Show these limits from now on. */
  told(limits: readonly Limit[]): void {
    for (const limit of limits) {
      let gauge = this.gauges.get(limit.name);
      if (!gauge) {
        gauge = make(limit);
        this.gauges.set(limit.name, gauge);
        this.element.append(gauge.element);
      }
      gauge.limit = limit;
      gauge.toldAt = performance.now();
    }
    draw(this.render);
  }

  private readonly render = (): void => {
    let moving = false;
    for (const gauge of this.gauges.values()) {
      const { limit } = gauge;
      const left = remainingAfter(limit, (performance.now() - gauge.toldAt) / 1000);
      const share = limit.limit > 0 ? Math.max(0, Math.min(1, left / limit.limit)) : 0;
      gauge.bar.style.transform = `scaleX(${share.toFixed(4)})`;
      gauge.element.dataset.low = String(share < LOW);
      gauge.element.dataset.share = share.toFixed(3);
      gauge.meter.setAttribute("aria-valuenow", String(Math.round(left)));
      setText(gauge.figure, strings.panel.left(limit.name, left, limit.limit));
      moving ||= left < limit.limit && left > limit.remaining - 1 && limit.reset_seconds > 0;
    }
    clearTimeout(this.timer);
    if (moving) this.timer = window.setTimeout(() => draw(this.render), REFILL_MS);
  };
}

function make(limit: Limit): Gauge {
  const bar = h("span", { class: "gauge-bar" });
  const name = strings.panel.limits[limit.name] ?? limit.name;
  const meter = h(
    "div",
    {
      class: "gauge-track",
      role: "meter",
      "aria-label": name,
      "aria-valuemin": 0,
      "aria-valuemax": limit.limit,
      "aria-valuenow": Math.round(limit.remaining),
    },
    bar,
  );
  const figure = h("span", { class: "figure" });
  const element = h(
    "div",
    { class: "gauge", testid: `gauge-${limit.name}` },
    h("div", { class: "row" }, h("span", {}, name), figure),
    meter,
  );
  return { element, meter, bar, figure, limit, toldAt: performance.now() };
}
