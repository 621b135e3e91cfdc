/** The buttons that make the promise visible. What only a demo has is hidden elsewhere. */

import { ask } from "./backend.ts";
import { DeviceDialog } from "./devices.ts";
import { h, type IconName, icon, setText } from "./dom.ts";
import { preferences } from "./settings.ts";
import { strings } from "./strings.ts";

const text = strings.controls;

/** What the server says of itself where it is a demo. */
export interface Demo {
  /** Other machines may come in, with a link. */
  lan: boolean;
  /** The target that the button breaks. */
  primary: string;
  broken: boolean;
}

interface Actions {
  cut(): void;
  twice(): void;
  /** The chat that is looked at, if there is something in it. */
  chat(): string | undefined;
  /** The session of the present connection. */
  session(): string | undefined;
  note(kind: "good" | "warn" | "bad" | "plain", what: string): void;
  /** Something may have changed at the server. */
  look(): void;
}

export class Controls {
  readonly element: HTMLElement;
  readonly devices = new DeviceDialog();
  private readonly demoOnly: HTMLButtonElement[];
  private readonly primary: HTMLButtonElement;
  private readonly actions: Actions;
  private readonly status = h("p", { class: "controls-status", role: "status", testid: "controls-status" });
  private demo: Demo | undefined;

  constructor(actions: Actions) {
    this.actions = actions;
    this.primary = button("primary", "bolt", text.breakPrimary, text.breakPrimaryHint, () => this.togglePrimary());
    this.primary.setAttribute("aria-pressed", "false");
    const kill = button("kill", "server", text.kill, text.killHint, () => this.kill());
    const device = button(
      "device",
      "devices",
      text.device,
      text.deviceHint,
      () => void this.devices.open(actions.chat()),
    );
    this.demoOnly = [this.primary, kill, device];
    this.element = h(
      "section",
      { class: "panel-section controls", "aria-label": text.label },
      h("h3", {}, text.label),
      button("cut-too", "cut", strings.actions.cut, text.cutHint, () => actions.cut()),
      this.primary,
      kill,
      button("twice", "twice", text.twice, text.twiceHint, () => actions.twice()),
      device,
      this.status,
    );
    this.show(undefined);
  }

  /** What the server said last; undefined: it is no demo. */
  show(demo: Demo | undefined): void {
    this.demo = demo;
    for (const each of this.demoOnly) each.hidden = !demo;
    const broken = demo?.broken ?? false;
    this.primary.setAttribute("aria-pressed", String(broken));
    const [label, hint] = this.primary.querySelectorAll(".control-text > *");
    if (label) setText(label, broken ? text.mendPrimary : text.breakPrimary);
    if (hint) setText(hint, broken ? text.mendPrimaryHint : text.breakPrimaryHint);
  }

  /** Say how something went; `proof`: a path of the server that shows it. */
  say(what: string, proof?: string): void {
    // A link carries no token: where one is needed there is none.
    const link = proof !== undefined && !preferences.token;
    this.status.replaceChildren(
      what,
      ...(link ? [" ", h("a", { href: proof, target: "_blank", rel: "noopener", testid: "proof" }, text.proof)] : []),
    );
  }

  private togglePrimary(): void {
    const broken = !this.demo?.broken;
    void this.press("/v1/demo/primary", { broken }, () => {
      if (this.demo) this.show({ ...this.demo, broken });
      this.actions.note(broken ? "bad" : "good", broken ? text.broke : text.mended);
    });
  }

  private kill(): void {
    const session = this.actions.session();
    if (session === undefined) this.say(text.notConnected);
    else void this.press("/v1/demo/kill", { session }, () => this.actions.note("bad", text.killed));
  }

  private async press(path: string, body: unknown, then: () => void): Promise<void> {
    try {
      await ask(path, "POST", body);
      this.say("");
      then();
    } catch {
      this.say(text.refused);
    }
    this.actions.look();
  }
}

function button(name: string, picture: IconName, label: string, hint: string, onclick: () => void): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: `control control-${name}`, testid: name, onclick },
    icon(picture),
    h("span", { class: "control-text" }, h("strong", {}, label), h("span", {}, hint)),
  );
}
