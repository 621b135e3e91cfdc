/** One light per target: in use, left alone, on trial. Asked of the server while somebody looks. */

import { ask } from "./backend.ts";
import type { Demo } from "./controls.ts";
import { h, setText } from "./dom.ts";
import { draw } from "./frame.ts";
import { strings } from "./strings.ts";

/** How often the lights are asked for, in milliseconds: while something goes on, and else. */
const BUSY_MS = 700;
const IDLE_MS = 4000;

export interface Light {
  name: string;
  model: string;
  state: "closed" | "open" | "half_open" | "throttled" | "ramping";
  why: string;
  retry_after_ms: number;
  share: number;
}

interface Answer {
  data: Light[];
  routes: { id: string; targets: string[] }[];
  demo?: Demo;
}

interface Surroundings {
  /** The route that questions go to. */
  route(): string;
  /** Answers that stream now, by target. */
  streaming(): Map<string, number>;
  /** What the server says of itself, if it is a demo. */
  onDemo(demo: Demo | undefined): void;
}

export class Lights {
  readonly element = h("div", { class: "lights", testid: "lights" });
  private readonly chain = h("p", { class: "fine", testid: "route" });
  private readonly rows = new Map<string, { element: HTMLElement; state: HTMLElement; busy: HTMLElement }>();
  private readonly around: Surroundings;
  private answer: Answer | undefined;
  private askedAt = 0;
  private timer = 0;
  private asking = false;
  private running = false;

  constructor(around: Surroundings) {
    this.around = around;
    this.element.append(this.chain);
    document.addEventListener("visibilitychange", () => this.soon());
  }

  /** Whether anybody looks at them. */
  watch(running: boolean): void {
    this.running = running;
    this.soon();
  }

  /** Something happened that may have changed a light. */
  soon(): void {
    clearTimeout(this.timer);
    if (!this.running || this.asking || document.visibilityState !== "visible") return;
    const wait = Math.max(0, this.askedAt + BUSY_MS - performance.now());
    this.timer = window.setTimeout(() => void this.refresh(), wait);
    draw(this.render);
  }

  private async refresh(): Promise<void> {
    this.asking = true;
    this.askedAt = performance.now();
    try {
      this.answer = await ask<Answer>("/v1/targets");
      this.around.onDemo(this.answer.demo);
      draw(this.render);
    } catch {
      // Not reachable just now: the lights stay as they were, the chip above tells of the connection.
    }
    this.asking = false;
    if (!this.running || document.visibilityState !== "visible") return;
    const calm = this.answer?.data.every((light) => light.state === "closed") && this.around.streaming().size === 0;
    this.timer = window.setTimeout(() => void this.refresh(), calm ? IDLE_MS : BUSY_MS);
  }

  private readonly render = (): void => {
    const { answer } = this;
    if (!answer) return;
    const route = answer.routes.find(({ id }) => id === this.around.route()) ?? answer.routes[0];
    const order = route?.targets ?? [];
    setText(this.chain, route ? strings.panel.route(route.id, order) : "");
    const streaming = this.around.streaming();
    const place = (light: Light): number => (order.includes(light.name) ? order.indexOf(light.name) : order.length);
    for (const light of [...answer.data].sort((a, b) => place(a) - place(b))) {
      this.show(light, streaming.get(light.name) ?? 0);
    }
  };

  private show(light: Light, streaming: number): void {
    const row = this.rows.get(light.name) ?? this.add(light);
    row.element.dataset.state = light.state;
    row.element.dataset.busy = String(streaming > 0);
    setText(row.state, strings.panel.light(light.state, light.why, light.retry_after_ms, light.share));
    setText(row.busy, streaming > 0 ? strings.panel.answering(streaming) : "");
  }

  private add(light: Light): { element: HTMLElement; state: HTMLElement; busy: HTMLElement } {
    const state = h("span", { class: "light-state" });
    const busy = h("span", { class: "light-busy" });
    const element = h(
      "div",
      { class: "light", testid: `light-${light.name}` },
      h("span", { class: "lamp" }),
      h(
        "div",
        { class: "light-text" },
        h("div", { class: "row" }, h("strong", { title: light.model }, light.name), busy),
        state,
      ),
    );
    const row = { element, state, busy };
    this.rows.set(light.name, row);
    this.element.append(element);
    return row;
  }
}
