/**
 * Markdown as DOM nodes. Answers are hostile until proven otherwise: no markup string is ever parsed as HTML. marked
 * only splits the text into tokens, and each known token becomes an element made here; raw HTML stays visible text.
 */

import { lexer, type Token, type Tokens } from "marked";
import { h, icon } from "./dom.ts";
import { colour } from "./highlight.ts";
import { strings } from "./strings.ts";

const LINK_SCHEMES = new Set(["http:", "https:", "mailto:"]);

/** A piece of the page that shows Markdown which grows: only blocks that changed are made anew. */
export class MarkdownView {
  readonly element = h("div", { class: "prose" });
  private blocks: { raw: string; node: Node }[] = [];

  update(text: string): void {
    const tokens = lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
    let same = 0;
    while (same < this.blocks.length && this.blocks[same]?.raw === tokens[same]?.raw) same++;
    for (const block of this.blocks.splice(same)) block.node.parentNode?.removeChild(block.node);
    for (const token of tokens.slice(same)) {
      const node = block(token);
      this.element.append(node);
      this.blocks.push({ raw: token.raw, node });
    }
  }
}

function block(token: Token): Node {
  switch (token.type) {
    case "heading":
      return h(`h${Math.min(token.depth + 2, 6)}` as "h3", { dir: "auto" }, ...inlines(token.tokens));
    case "paragraph":
      return h("p", { dir: "auto" }, ...inlines(token.tokens));
    case "code":
      return codeBlock(token as Tokens.Code);
    case "blockquote":
      return h("blockquote", { dir: "auto" }, ...blocks(token.tokens));
    case "list":
      return list(token as Tokens.List);
    case "table":
      return table(token as Tokens.Table);
    case "hr":
      return h("hr");
    case "text":
      return token.tokens
        ? h("span", { dir: "auto" }, ...inlines(token.tokens))
        : document.createTextNode(decode(token.text));
    default:
      return h("p", { dir: "auto" }, token.raw);
  }
}

function blocks(tokens: Token[] | undefined): Node[] {
  return (tokens ?? []).filter((token) => token.type !== "space" && token.type !== "def").map(block);
}

function codeBlock(token: Tokens.Code): Node {
  const copy = h(
    "button",
    {
      type: "button",
      class: "icon-button copy-code",
      "aria-label": strings.actions.copyCode,
      title: strings.actions.copyCode,
      onclick: () => void copyText(token.text, copy),
    },
    icon("copy"),
  );
  const language = /^[\w+#.-]+/.exec(token.lang ?? "")?.[0] ?? "";
  return h(
    "div",
    { class: "code", dir: "ltr" },
    h("div", { class: "code-head" }, h("span", {}, language), copy),
    h("pre", { tabindex: 0 }, coloured(token.text, language)),
  );
}

function coloured(text: string, language: string): HTMLElement {
  const code = h("code", {}, text);
  if (language) void colour(code, text, language);
  return code;
}

/** Copy, and show for a moment that it worked. */
export async function copyText(text: string, button: HTMLElement): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // A page over plain HTTP has no clipboard.
  }
  const before = button.firstElementChild;
  const label = button.title;
  before?.replaceWith(icon("check"));
  button.title = strings.actions.copied;
  setTimeout(() => {
    if (before) button.firstElementChild?.replaceWith(before);
    button.title = label;
  }, 1500);
}

function copyBySelection(text: string): void {
  const field = h("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

function list(token: Tokens.List): Node {
  const items = token.items.map((item) =>
    h(
      "li",
      { dir: "auto", class: item.task ? "task" : undefined },
      item.task && h("input", { type: "checkbox", disabled: true, checked: item.checked, "aria-label": item.text }),
      ...blocks(item.tokens.filter((inner) => inner.type !== "checkbox")),
    ),
  );
  if (!token.ordered) return h("ul", {}, ...items);
  return h("ol", { start: token.start === "" ? 1 : token.start }, ...items);
}

function table(token: Tokens.Table): Node {
  const cell = (tag: "th" | "td") => (entry: Tokens.TableCell) =>
    h(tag, { dir: "auto", class: entry.align ? `align-${entry.align}` : undefined }, ...inlines(entry.tokens));
  return h(
    "div",
    { class: "table", tabindex: 0 },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...token.header.map(cell("th")))),
      h("tbody", {}, ...token.rows.map((row) => h("tr", {}, ...row.map(cell("td"))))),
    ),
  );
}

function inlines(tokens: Token[] | undefined): Node[] {
  return (tokens ?? []).map(inline);
}

function inline(token: Token): Node {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return h(token.type, {}, ...inlines(token.tokens));
    case "codespan":
      return h("code", {}, decode(token.text));
    case "br":
      return h("br");
    case "link":
      return link(token.href, inlines(token.tokens));
    case "image":
      // An image would be fetched from wherever the answer says, and tell it who reads.
      return link(token.href, [document.createTextNode(`${strings.imageAsLink}: ${decode(token.text) || token.href}`)]);
    case "text":
      return token.tokens ? h("span", {}, ...inlines(token.tokens)) : document.createTextNode(decode(token.text));
    case "escape":
      return document.createTextNode(decode(token.text));
    default:
      return document.createTextNode(token.raw);
  }
}

/** A link if it leads to the web or to mail; anything else is only its text. */
function link(href: string, children: Node[]): Node {
  const url = URL.canParse(href) ? new URL(href) : undefined;
  if (!url || !LINK_SCHEMES.has(url.protocol)) return h("span", { title: href }, ...children);
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

const NAMED: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** The character references that models write in prose. Anything else stays as it is. */
function decode(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{2,6}));/gi, (whole, decimal, hexadecimal, name) => {
    if (name !== undefined) return NAMED[name] ?? whole;
    const point = decimal !== undefined ? Number(decimal) : Number.parseInt(hexadecimal, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });
}
