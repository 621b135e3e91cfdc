/** The box with a link, and on a network a code to scan, that brings in one more device. */

import { ask } from "./backend.ts";
import { h, setText } from "./dom.ts";
import { copyText } from "./markdown.ts";
import { strings } from "./strings.ts";

const text = strings.devices;

interface Link {
  url: string;
  lan: boolean;
  expires_in_seconds?: number;
}

export class DeviceDialog {
  readonly element: HTMLDialogElement;
  private readonly picture = h("div", { class: "qr", testid: "qr" });
  private readonly link = h("a", { target: "_blank", rel: "noopener", testid: "device-link" });
  private readonly hint = h("p", {});

  constructor() {
    const copy = h(
      "button",
      { type: "button", class: "quiet", onclick: () => void copyText(this.link.href, copy) },
      h("span", {}, text.copy),
    );
    this.element = h(
      "dialog",
      { class: "device", "aria-labelledby": "device-title", testid: "device-dialog" },
      h("h2", { id: "device-title" }, text.title),
      this.hint,
      this.picture,
      h("p", { class: "device-link" }, this.link),
      h(
        "div",
        { class: "buttons" },
        copy,
        h("button", { type: "button", class: "primary", onclick: () => this.element.close() }, text.close),
      ),
    );
  }

  /** Get a new link and show it; it leads to the chat `open`, if there is something in it. */
  async open(open: string | undefined): Promise<void> {
    let link: Link;
    try {
      link = await ask<Link>("/v1/demo/devices", "POST", {});
    } catch {
      setText(this.hint, text.failed);
      this.element.showModal();
      return;
    }
    const url = open ? `${link.url}${link.url.includes("#") ? "&" : "#"}chat=${open}` : link.url;
    this.link.href = url;
    setText(this.link, url);
    setText(this.hint, link.lan ? text.scan(Math.round((link.expires_in_seconds ?? 0) / 60)) : text.sameMachine);
    this.picture.replaceChildren();
    this.element.showModal();
    if (link.lan) this.picture.append(await drawn(url));
  }
}

/** The address as a code to scan (ISO/IEC 18004). */
async function drawn(url: string): Promise<Element> {
  const [{ generate }, { toSvg }] = await Promise.all([import("lean-qr"), import("lean-qr/extras/svg")]);
  const picture = toSvg(generate(url), document, { on: "#0b1b20", off: "#ffffff", padX: 3, padY: 3 });
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", text.code);
  return picture;
}
