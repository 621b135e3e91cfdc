/** The operator's page: how the whole cluster is doing. */

import "../page/style.css";
import "../page/panel.css";
import "./operator.css";
import { ask, Refused } from "../page/backend.ts";
import { h, icon, setText } from "../page/dom.ts";
import { preferences, tokenDialog } from "../page/settings.ts";
import { strings } from "../page/strings.ts";
import { Plot } from "./plot.ts";
import { type Sample, Series } from "./series.ts";

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
const rate = (value: number): string => (value < 10 ? value.toFixed(1).replace(/\.0$/, "") : whole(value));

class Page {
  private series: Series | undefined;
  private readonly sessions = new Plot(text.sessions, "plot-sessions", [{ name: text.sessions, kind: "main" }], whole);
  private readonly running = new Plot(text.running, "plot-running", [{ name: text.running, kind: "main" }], whole);
  private readonly tokens = new Plot(text.tokens, "plot-tokens", [{ name: text.tokens, kind: "main" }], rate);
  private readonly ended = new Plot(
    text.ended,
    "plot-ended",
    [
      { name: text.done, kind: "good" },
      { name: text.failed, kind: "bad" },
      { name: text.cancelled, kind: "warn" },
    ],
    rate,
  );
  private readonly refused = new Plot(text.refused, "plot-refused", [{ name: text.refused, kind: "warn" }], rate);
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
    const steps = series.steps(now);
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
    this.lights.replaceChildren(
      ...series
        .targets()
        .map((target) =>
          h(
            "div",
            { class: "light", "data-state": target.state, testid: `light-${target.name}` },
            h("span", { class: "lamp" }),
            h(
              "div",
              { class: "light-text" },
              h("div", { class: "row" }, h("strong", {}, target.name), h("span", { class: "figure" }, target.model)),
              h(
                "span",
                { class: "light-state" },
                strings.panel.light(target.state, target.why, target.retry_after_ms, target.share),
              ),
              h(
                "div",
                { class: "fine" },
                text.window(target.calls, target.failed, target.slow, target.first_token_p95_ms),
              ),
            ),
          ),
        ),
    );
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
    this.spending.replaceChildren(
      ...series
        .spending()
        .map(({ tenant, messages, tokens, usd }) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, tenant),
            ...[whole(messages), whole(tokens), strings.meta.cost(usd)].map((figure) => h("td", {}, figure)),
          ),
        ),
    );
    setText(this.status, text.status(nodes.length));
  }
}

new Page().start(document.body);
