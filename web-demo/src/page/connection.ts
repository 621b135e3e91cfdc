/** How the connection is doing: the chip in the top bar, and the banner when it isn't. */

import type { Status } from "../client/index.ts";
import { h, icon, setText } from "./dom.ts";
import { strings } from "./strings.ts";

const text = strings.connection;
/** How often the countdown is redrawn, in milliseconds. */
const COUNTDOWN_MS = 250;
/** For how long "back" is shown after a loss, in milliseconds. */
const BACK_MS = 2500;

interface Actions {
  cut(): void;
  reconnect(): void;
  openAnswers(): number;
}

export class ConnectionView {
  readonly chip = h("span", { class: "chip-text" });
  private readonly detail = h("span", { class: "chip-detail" });
  readonly element = h(
    "div",
    { class: "chip", testid: "connection" },
    h("span", { class: "dot" }),
    this.chip,
    this.detail,
  );
  readonly cutButton: HTMLButtonElement;
  readonly banner: HTMLElement;

  private readonly bannerText = h("span", { class: "banner-text" });
  private readonly actions: Actions;
  private status: Status | undefined;
  private wasOpen = false;
  private timer = 0;
  private backUntil = 0;

  constructor(actions: Actions) {
    this.actions = actions;
    this.cutButton = h(
      "button",
      { type: "button", class: "cut", testid: "cut", title: strings.actions.cut, onclick: () => actions.cut() },
      icon("cut"),
      h("span", {}, strings.actions.cut),
    );
    this.banner = h(
      "div",
      { class: "banner", role: "status", testid: "banner", hidden: true },
      icon("alert"),
      this.bannerText,
      h(
        "button",
        { type: "button", class: "quiet", testid: "reconnect", onclick: () => actions.reconnect() },
        strings.actions.reconnect,
      ),
    );
    window.addEventListener("online", () => this.render());
    window.addEventListener("offline", () => this.render());
  }

  show(status: Status): void {
    if (status.phase === "open" && this.status?.phase !== "open") {
      if (this.wasOpen) this.backUntil = Date.now() + BACK_MS;
      this.wasOpen = true;
    }
    this.status = status;
    this.render();
  }

  private render(): void {
    const status = this.status;
    if (!status) return;
    const state = this.state(status);
    this.element.dataset.state = state;
    this.element.dataset.connections = String(status.connections);
    setText(this.chip, this.label(status, state));
    const roundTrip = status.roundTripMs;
    setText(
      this.detail,
      state === "connected" && roundTrip !== undefined ? text.roundTrip(Math.max(1, roundTrip)) : "",
    );
    this.cutButton.disabled = status.phase !== "open";
    this.renderBanner(status, state);
    clearTimeout(this.timer);
    if (status.phase === "waiting") this.timer = window.setTimeout(() => this.render(), COUNTDOWN_MS);
    else if (Date.now() < this.backUntil) this.timer = window.setTimeout(() => this.render(), BACK_MS);
  }

  private state(status: Status): "connected" | "connecting" | "reconnecting" | "offline" | "stopped" {
    if (status.phase === "open") return "connected";
    if (status.phase === "stopped") return "stopped";
    if (!navigator.onLine) return "offline";
    return this.wasOpen || status.phase === "waiting" ? "reconnecting" : "connecting";
  }

  private label(status: Status, state: ReturnType<ConnectionView["state"]>): string {
    switch (state) {
      case "connected":
        return text.connected;
      case "connecting":
        return text.connecting;
      case "stopped":
        return text.stopped;
      case "offline":
        return text.offline;
      default: {
        const seconds = Math.ceil(((status.retryAt ?? 0) - Date.now()) / 1000);
        return seconds > 0 ? text.reconnectingIn(seconds) : text.reconnecting;
      }
    }
  }

  private renderBanner(status: Status, state: ReturnType<ConnectionView["state"]>): void {
    const back = state === "connected" && Date.now() < this.backUntil;
    const shown = back || state === "offline" || state === "stopped" || (state === "reconnecting" && this.wasOpen);
    this.banner.hidden = !shown;
    if (!shown) return;
    this.banner.dataset.state = back ? "back" : state;
    if (back) setText(this.bannerText, text.back);
    else if (state === "stopped") setText(this.bannerText, text.closed(status.closeCode ?? 0));
    else {
      const open = this.actions.openAnswers();
      const title = state === "offline" ? text.offlineTitle : text.lostTitle;
      setText(this.bannerText, `${title} ${open > 0 ? text.goesOn(open) : text.nothingLost}`);
    }
  }
}
