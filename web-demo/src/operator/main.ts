/** The operator's page: how the whole cluster is doing. */

import "../page/style.css";
import "../page/panel.css";
import "./operator.css";
import { ask, Refused } from "../page/backend.ts";
import { h, icon, setText } from "../page/dom.ts";
import { preferences, tokenDialog } from "../page/settings.ts";
import { strings } from "../page/strings.ts";
import { Plot, Strip } from "./plot.ts";
import { type Sample, Series, type Step, type Target } from "./series.ts";

const text = strings.operator;
/** How often the page asks, in milliseconds. */
const ASK_MS = 2000;
const UNAUTHORIZED = new Set([401, 403]);

interface Answer {
  data: Sample[];
  sample_seconds: number;
  window_seconds: number;
  server_time: number;
}

const whole = (value: number): string => Math.round(value).toLocaleString();
const dollars = (value: number): string => strings.meta.cost(value);
const rate = (value: number): string => (value < 10 ? value.toFixed(1).replace(/\.0$/, "") : whole(value));

class Page {
  private series: Series | undefined;
  private readonly sessions = new Plot(
    text.sessions,
    "plot-sessions",
    [{ name: text.sessions, kind: "main" }],
    whole,
    2,
  );
  private readonly running = new Plot(text.running, "plot-running", [{ name: text.running, kind: "main" }], whole, 2);
  private readonly tokens = new Plot(text.tokens, "plot-tokens", [{ name: text.tokens, kind: "main" }], rate, 1);
  private readonly ended = new Plot(
    text.ended,
    "plot-ended",
    [
      { name: text.done, kind: "good" },
      { name: text.failed, kind: "bad" },
      { name: text.cancelled, kind: "warn" },
    ],
    rate,
    1,
  );
  private readonly refused = new Plot(text.refused, "plot-refused", [{ name: text.refused, kind: "warn" }], rate, 1);
  private readonly cost = new Plot(
    text.cost,
    "plot-cost",
    [{ name: text.cost, kind: "main" }],
    dollars,
    0.001,
    text.dollars,
  );
  private readonly strips = new Map<string, Strip>();
  private readonly lights = h("div", { class: "lights", testid: "operator-lights" });
  private readonly nodes = h("div", { class: "nodes", testid: "nodes" });
  private readonly spending = h("tbody", {});
  private readonly status = h("p", { class: "fine", role: "status", testid: "operator-status" });
  private readonly token = tokenDialog(() => void this.tick());
  private asking = false;

  start(root: HTMLElement): void {
    const box = (title: string, ...children: Node[]): HTMLElement =>
      h("section", { class: "plot-box" }, h("h2", {}, title), ...children);
    root.append(
      h(
        "main",
        { class: "operator" },
        h(
          "header",
          { class: "operator-head" },
          h("a", { class: "brand", href: "/" }, h("span", { class: "mark" }, icon("wave")), strings.brand),
          h("h1", {}, text.title),
          this.status,
        ),
        h(
          "div",
          { class: "plots" },
          this.sessions.element,
          this.running.element,
          this.tokens.element,
          this.ended.element,
          this.refused.element,
          this.cost.element,
          box(text.targets, this.lights),
          box(text.nodes, this.nodes),
          box(
            text.spending,
            h(
              "table",
              { class: "books", testid: "spending" },
              h("thead", {}, h("tr", {}, ...text.columns.map((name) => h("th", { scope: "col" }, name)))),
              this.spending,
            ),
          ),
        ),
      ),
      this.token.dialog,
    );
    void this.tick();
    setInterval(() => {
      if (document.visibilityState === "visible") void this.tick();
    }, ASK_MS);
  }

  private async tick(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    try {
      const after = this.series?.last;
      const answer = await ask<Answer>(`/v1/operator${after ? `?after=${after}` : ""}`);
      this.series ??= new Series(answer.sample_seconds * 1000, answer.window_seconds * 1000);
      this.series.add(answer.data);
      this.show(this.series, answer.server_time * 1000);
    } catch (error) {
      const refused = error instanceof Refused && UNAUTHORIZED.has(error.status);
      setText(this.status, refused ? text.refusedHere : text.unreachable);
      if (refused && !this.token.dialog.open) this.token.open(preferences.token ? text.lacksScope : "");
    }
    this.asking = false;
  }

  private show(series: Series, now: number): void {
    const steps = series.steps(now).slice(0, -1); // The last one is still being filled.
    const seconds = series.stepMs / 1000;
    this.sessions.show([steps.map(({ sessions }) => sessions)]);
    this.running.show([steps.map(({ running }) => running)]);
    this.tokens.show([steps.map(({ chunks }) => chunks / seconds)]);
    this.ended.show([
      steps.map(({ done }) => done / seconds),
      steps.map(({ failed }) => failed / seconds),
      steps.map(({ cancelled }) => cancelled / seconds),
    ]);
    this.refused.show([steps.map(({ refused }) => refused / seconds)]);
    this.cost.show([steps.map(({ usd }) => (usd * 60) / seconds)]);
    this.lights.replaceChildren(...series.targets().map((target) => this.light(target, steps)));
    const nodes = [...series.nodes.values()].sort((a, b) => a.sample.node.localeCompare(b.sample.node));
    this.nodes.replaceChildren(
      ...nodes.map(({ sample }) =>
        h(
          "div",
          { class: "row node", testid: "node" },
          h("span", {}, sample.node.slice(0, 6)),
          h("span", { class: "figure" }, text.node(sample.sessions, sample.running)),
        ),
      ),
    );
    const spending = series.spending();
    const most = Math.max(...spending.map(({ usd }) => usd));
    this.spending.replaceChildren(
      ...spending.map(({ tenant, messages, tokens, usd }) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, tenant, bar(usd / (most || 1))),
          ...[whole(messages), whole(tokens), dollars(usd)].map((figure) => h("td", {}, figure)),
        ),
      ),
    );
    setText(this.status, text.status(nodes.length));
  }

  private light(target: Target, steps: readonly Step[]): HTMLElement {
    const strip = this.strips.get(target.name) ?? new Strip();
    this.strips.set(target.name, strip);
    const states = steps.map((step) => step.states.get(target.name));
    const bad = states.filter((state) => state !== undefined && state !== "closed").length;
    strip.show(states, text.strip(target.name, Math.round((100 * bad) / Math.max(1, states.length))));
    const { state, why, retry_after_ms, share, calls, failed, slow, first_token_p95_ms } = target;
    return h(
      "div",
      { class: "light", "data-state": state, testid: `light-${target.name}` },
      h("span", { class: "lamp" }),
      h(
        "div",
        { class: "light-text" },
        h("div", { class: "row" }, h("strong", {}, target.name), h("span", { class: "figure" }, target.model)),
        h("span", { class: "light-state" }, strings.panel.light(state, why, retry_after_ms, share)),
        h("div", { class: "fine" }, text.window(calls, failed, slow, first_token_p95_ms)),
        strip.element,
      ),
    );
  }
}

/** How long it is beside the longest. */
function bar(share: number): HTMLElement {
  const filled = h("span", {});
  filled.style.transform = `scaleX(${share.toFixed(3)})`;
  return h("span", { class: "share", "aria-hidden": "true" }, filled);
}

new Page().start(document.body);
