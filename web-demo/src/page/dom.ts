/** Elements without markup strings: text never becomes HTML. */

type Child = Node | string | false | null | undefined;
type Listener = (event: never) => void;
type Props = Record<string, string | number | boolean | Listener | undefined>;

/**
 * An element. `on…` properties are listeners, `testid` is `data-testid`, `true` is an empty attribute; `false` and
 * `undefined` are left out.
 */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
    else if (value !== undefined && value !== false) {
      element.setAttribute(name === "testid" ? "data-testid" : name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child): child is Node | string => child !== false && child != null));
  return element;
}

/** Change text only if it differs, so that selections and screen readers are left alone. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

const ICONS = {
  wave: "M2 9c2.5 0 2.5-3 5-3s2.5 3 5 3 2.5-3 5-3 2.5 3 5 3M2 17c2.5 0 2.5-3 5-3s2.5 3 5 3 2.5-3 5-3 2.5 3 5 3",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  retry: "M20 11A8 8 0 0 0 5.5 7L3.5 9M3.5 4v5h5M4 13a8 8 0 0 0 14.5 4l2-2M20.5 20v-5h-5",
  again: "M20.5 15l-2 2a8 8 0 1 1 0-10l2 2M20.5 4v5h-5",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  gear: "M4 7h10M18 7h2M4 17h2M10 17h10M16 4.5v5M8 14.5v5",
  menu: "M4 6h16M4 12h16M4 18h16",
  cut: "M9 3v5M15 3v5M6 8h12v3a6 6 0 0 1-5 5.9M11 16.9A6 6 0 0 1 6 11V8M12 17v4M3 3l18 18",
  down: "M12 5v14M5 12l7 7 7-7",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  alert: "M12 8v5M12 16.5v.01M12 3l9.5 17h-19z",
  close: "M6 6l12 12M18 6L6 18",
  pulse: "M3 12h4l3-8 4 16 3-8h4",
  bolt: "M13 3L5 14h6l-1 7 8-11h-6z",
  server: "M4 5h16v6H4zM4 13h16v6H4zM8 8v.01M8 16v.01",
  devices: "M3 5h13v9H3zM7 18h5M18 9h4v11h-6v-3",
  twice: "M9 9l-5 5 5 5M4 14h9a6 6 0 0 0 6-6V4M14 9l5-5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  back: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
  beside: "M3 5h18v14H3zM12 5v14",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5L20 20",
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A small button below a question or an answer; hidden until it is of use. */
export function action(name: IconName, label: string, onClick: () => void): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: `action action-${name}`, testid: name, title: label, onclick: onClick, hidden: true },
    icon(name),
    h("span", {}, label),
  );
}
