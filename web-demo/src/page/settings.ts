/** What the user chose, kept in this browser, and the menu to choose it. */

import type { Status } from "../client/index.ts";
import type { CodecName } from "./codec.ts";
import { h, icon, setText } from "./dom.ts";
import { strings } from "./strings.ts";

export type Theme = keyof typeof strings.settings.themes;

const THEME_KEY = "tidewire.theme"; // Also read by public/theme.js, before the first paint.
const CODEC_KEY = "tidewire.codec";
const TOKEN_KEY = "tidewire.token";
const DEVICE_KEY = "tidewire.device";

/** Storage may be blocked; then choices last as long as the page. */
export function storageOf(name: "localStorage" | "sessionStorage"): Storage | undefined {
  try {
    return window[name];
  } catch {
    return undefined;
  }
}

const local = storageOf("localStorage");
const tab = storageOf("sessionStorage");

export const preferences = {
  get theme(): Theme {
    const stored = local?.getItem(THEME_KEY);
    return stored === "light" || stored === "dark" ? stored : "system";
  },
  set theme(theme: Theme) {
    if (theme === "system") local?.removeItem(THEME_KEY);
    else local?.setItem(THEME_KEY, theme);
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  },
  get codec(): CodecName {
    return local?.getItem(CODEC_KEY) === "msgpack" ? "msgpack" : "json";
  },
  set codec(codec: CodecName) {
    local?.setItem(CODEC_KEY, codec);
  },
  get token(): string | undefined {
    return tab?.getItem(TOKEN_KEY) ?? local?.getItem(DEVICE_KEY) ?? undefined;
  },
  /** The token of a device that came in by a link: kept beyond the tab. */
  set deviceToken(token: string) {
    local?.setItem(DEVICE_KEY, token);
  },
  set token(token: string | undefined) {
    if (token) tab?.setItem(TOKEN_KEY, token);
    else tab?.removeItem(TOKEN_KEY);
  },
};

interface Choices {
  onCodec(codec: CodecName): void;
  onClear(): void;
}

/** The button and its menu. `show` keeps the facts about the session current. */
export function settingsMenu(choices: Choices): { button: HTMLElement; menu: HTMLElement; show(status: Status): void } {
  const facts = h("p", { class: "facts", testid: "session-facts" });
  const menu = h(
    "div",
    { id: "settings", popover: "auto", class: "popover settings", role: "dialog", "aria-label": strings.settings.open },
    choice("theme", strings.settings.theme, strings.settings.themes, preferences.theme, (theme) => {
      preferences.theme = theme;
    }),
    choice("codec", strings.settings.codec, strings.settings.codecs, preferences.codec, (codec) => {
      preferences.codec = codec;
      choices.onCodec(codec);
    }),
    facts,
    h(
      "button",
      {
        type: "button",
        class: "danger",
        testid: "clear",
        onclick: () => {
          menu.hidePopover();
          choices.onClear();
        },
      },
      icon("trash"),
      strings.settings.clear,
    ),
  );
  const button = h(
    "button",
    {
      type: "button",
      class: "icon-button",
      popovertarget: "settings",
      testid: "settings",
      "aria-label": strings.settings.open,
      title: strings.settings.open,
    },
    icon("gear"),
  );
  const show = (status: Status): void => {
    const welcome = status.welcome;
    setText(
      facts,
      welcome
        ? `${strings.settings.user(welcome.user, welcome.tier)} · ${strings.settings.connections(status.connections)}`
        : "",
    );
  };
  return { button, menu, show };
}

function choice<K extends string>(
  name: string,
  legend: string,
  options: Record<K, string>,
  chosen: K,
  onChoose: (value: K) => void,
): HTMLElement {
  const radios = (Object.entries(options) as [K, string][]).map(([value, label]) =>
    h(
      "label",
      { testid: `${name}-${value}` },
      h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onChoose(value) }),
      h("span", {}, label),
    ),
  );
  return h("fieldset", { class: "choice" }, h("legend", {}, legend), h("div", { class: "segments" }, ...radios));
}

/** The box that asks for a token when the server wants one. */
export function tokenDialog(onToken: (token: string) => void): {
  dialog: HTMLDialogElement;
  open(because?: string): void;
} {
  const because = h("p", {}, strings.token.text);
  const input = h("input", {
    type: "password",
    id: "token",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    testid: "token-input",
  });
  const dialog = h(
    "dialog",
    { class: "token", "aria-labelledby": "token-title", testid: "token-dialog" },
    h(
      "form",
      {
        onsubmit: (event: Event) => {
          event.preventDefault();
          preferences.token = input.value.trim();
          dialog.close();
          onToken(input.value.trim());
          input.value = "";
        },
      },
      h("h2", { id: "token-title" }, strings.token.title),
      because,
      h("label", { for: "token", class: "visually-hidden" }, strings.token.label),
      input,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, strings.token.cancel),
        h("button", { type: "submit", class: "primary", testid: "token-submit" }, strings.token.connect),
      ),
    ),
  );
  const open = (why = ""): void => {
    setText(because, why + strings.token.text);
    if (!dialog.open) dialog.showModal();
  };
  return { dialog, open };
}
