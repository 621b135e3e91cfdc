/** The panel that shows what the backend does, live. */

import type { Client, ClientEvent, Status } from "../client/index.ts";
import { Books } from "./books.ts";
import { Controls } from "./controls.ts";
import { h, icon, setText } from "./dom.ts";
import { Spark } from "./drawing.ts";
import { draw } from "./frame.ts";
import { Gauges } from "./gauges.ts";
import { Happenings } from "./happenings.ts";
import { Lights } from "./lights.ts";
import { storageOf } from "./settings.ts";
import { strings } from "./strings.ts";

const OPEN_KEY = "tidewire.panel";
/** From this width on, in pixels, there is room for the panel beside three answers: it is open unless it was closed. */
const WIDE = 1400;
/** So many round trips are drawn. */
const ROUND_TRIPS = 40;
/** So much of a node's name is shown. */
const NODE_CHARACTERS = 6;

const text = strings.panel;

interface Surroundings {
  client: Client;
  /** The route that questions go to. */
  route(): string;
  /** The chat that is looked at, if there is something in it. */
  chat(): string | undefined;
  cut(): void;
  /** Ask something, twice. */
  twice(): void;
  /** Called when the panel opens or closes. */
  onToggle(open: boolean): void;
}

export class Panel {
  readonly element: HTMLElement;
  readonly button: HTMLButtonElement;
  readonly happenings = new Happenings();
  readonly books = new Books();
  readonly controls: Controls;
  private readonly gauges = new Gauges();
  private readonly lights: Lights;
  private readonly spark = new Spark(text.roundTrips);
  private readonly facts = h("dl", { class: "facts-list", testid: "facts" });
  private readonly values = new Map<string, HTMLElement>();
  private readonly trips: number[] = [];
  private readonly around: Surroundings;
  private status: Status | undefined;
  private wasOpen = false;

  constructor(around: Surroundings) {
    this.around = around;
    this.controls = new Controls({
      cut: around.cut,
      twice: around.twice,
      session: () => (around.client.status.phase === "open" ? around.client.status.welcome?.session : undefined),
      chat: around.chat,
      note: (kind, what) => this.happenings.note(kind, what),
      look: () => this.lights.soon(),
    });
    this.lights = new Lights({
      route: around.route,
      streaming: () => this.streaming(),
      onDemo: (demo) => this.controls.show(demo),
    });
    const section = (title: string, ...children: Node[]): HTMLElement =>
      h("section", { class: "panel-section" }, h("h3", {}, title), ...children);
    this.element = h(
      "aside",
      { class: "panel", id: "panel", "aria-label": text.label, testid: "panel", hidden: true },
      h(
        "div",
        { class: "panel-head" },
        h("h2", {}, text.title),
        h(
          "button",
          {
            type: "button",
            class: "icon-button",
            "aria-label": text.close,
            title: text.close,
            onclick: () => this.toggle(false),
          },
          icon("close"),
        ),
      ),
      this.controls.element,
      section(text.targets, this.lights.element),
      section(text.quota, this.gauges.element),
      section(text.connection, this.spark.element, this.facts),
      section(text.cost, this.books.element),
      section(text.wire, this.happenings.element),
    );
    this.button = h(
      "button",
      {
        type: "button",
        class: "icon-button",
        "aria-controls": "panel",
        "aria-expanded": "false",
        "aria-label": text.open,
        title: text.open,
        testid: "panel-button",
        onclick: () => this.toggle(),
      },
      icon("pulse"),
    );
  }

  /** Open it if it was open, or if there is room and nobody closed it. */
  start(): void {
    const kept = storageOf("localStorage")?.getItem(OPEN_KEY);
    this.set(window.innerWidth >= WIDE && kept !== "closed");
    this.render();
  }

  get open(): boolean {
    return !this.element.hidden;
  }

  onEvent(event: ClientEvent): void {
    if (event.type === "status") this.onStatus(event.status);
    else this.happenings.onEvent(event);
    if (event.type === "welcomed" && event.frame.limits) this.gauges.told(event.frame.limits);
    if (event.type === "quota") this.gauges.told(event.limits);
    if (event.type === "attempt" || event.type === "ended" || event.type === "accepted") this.lights.soon();
    if (event.type !== "status") draw(this.render);
  }

  private toggle(open = !this.open): void {
    storageOf("localStorage")?.setItem(OPEN_KEY, open ? "open" : "closed");
    this.set(open);
    if (!open) this.button.focus();
  }

  private set(open: boolean): void {
    this.element.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    this.lights.watch(open);
    this.around.onToggle(open);
  }

  private onStatus(status: Status): void {
    if (status.phase === "open") this.wasOpen = true;
    else if (this.wasOpen && this.status?.phase === "open") this.happenings.note("bad", text.happenings.lost);
    const trip = status.roundTripMs;
    if (trip !== undefined && trip !== this.status?.roundTripMs) {
      this.trips.push(trip);
      if (this.trips.length > ROUND_TRIPS) this.trips.shift();
    }
    this.status = status;
    draw(this.render);
  }

  private streaming(): Map<string, number> {
    const found = new Map<string, number>();
    for (const message of this.around.client.session.unfinished) {
      const target = message.attempts.at(-1)?.target;
      if (target) found.set(target, (found.get(target) ?? 0) + 1);
    }
    return found;
  }

  private readonly render = (): void => {
    const { status } = this;
    const messages = [...this.around.client.session.messages.values()];
    const welcome = status?.welcome;
    this.spark.show(this.trips);
    this.fact(text.facts.roundTrip, this.trips.length > 0 ? strings.connection.roundTrip(this.trips.at(-1) ?? 0) : "–");
    this.fact(text.facts.node, welcome?.node?.slice(0, NODE_CHARACTERS) ?? "–", "node");
    this.fact(text.facts.user, welcome ? strings.settings.user(welcome.user, welcome.tier) : "–");
    this.fact(text.facts.connections, String(status?.connections ?? 0));
    this.fact(text.facts.open, String(this.around.client.session.unfinished.length));
    this.fact(
      text.facts.resumes,
      String(messages.reduce((sum, message) => sum + message.reconnects + message.resyncs, 0)),
      "resumes",
    );
  };

  private fact(name: string, value: string, testid?: string): void {
    let shown = this.values.get(name);
    if (!shown) {
      shown = h("dd", { testid: testid && `fact-${testid}` });
      this.values.set(name, shown);
      this.facts.append(h("div", {}, h("dt", {}, name), shown));
    }
    setText(shown, value);
  }
}
