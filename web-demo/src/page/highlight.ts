/** Colours for code. What colours it is loaded with the first code block, and gives a tree, never markup. */

import { h } from "./dom.ts";
import { draw } from "./frame.ts";

type Colours = typeof import("./languages.ts");

/** Longer code than this, in characters, stays plain: it would take longer than a frame. */
const LONGEST = 20_000;
let loaded: Colours | undefined;
let loading: Promise<Colours> | undefined;

/** Colour `code`, whose text is `text`, once the colours are there. */
export async function colour(code: HTMLElement, text: string, language: string): Promise<void> {
  if (text.length > LONGEST) return;
  if (!loaded) {
    loading ??= import("./languages.ts");
    try {
      loaded = await loading;
    } catch {
      return; // Offline: plain code it is.
    }
  }
  const { tree } = loaded;
  const fill = (): void => {
    const found = tree(text, language);
    if (found) code.replaceChildren(...found.map(node));
  };
  if (code.isConnected) draw(fill);
  else fill();
}

interface Piece {
  type: string;
  value?: string;
  properties?: { className?: unknown };
  children?: Piece[];
}

function node(piece: Piece): Node {
  if (piece.type !== "element") return document.createTextNode(piece.value ?? "");
  const classes = piece.properties?.className;
  const names = Array.isArray(classes) ? classes.filter((name) => /^[\w-]+$/.test(String(name))).join(" ") : "";
  return h("span", { class: names }, ...(piece.children ?? []).map(node));
}
