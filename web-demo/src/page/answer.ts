/** One question with its answer, on the page. */

import type { ErrorBody, Message } from "../client/index.ts";
import { h, icon, setText } from "./dom.ts";
import { copyText, MarkdownView } from "./markdown.ts";
import { strings } from "./strings.ts";
import type { Answer, Turn } from "./turns.ts";
import { answerOf } from "./turns.ts";

export interface AnswerActions {
  stop(turn: Turn): void;
  retry(turn: Turn): void;
  askAgain(turn: Turn): void;
}

type Shown = "waiting" | "offline" | "queued" | "thinking" | "streaming" | "paused" | "resuming" | "stopping";

export class TurnView {
  readonly element: HTMLElement;
  private readonly article: HTMLElement;
  private readonly markdown = new MarkdownView();
  private readonly name = h("span", { class: "answer-name" });
  private readonly pill = h("span", { class: "pill", testid: "state" });
  private readonly notice = h("p", { class: "notice", testid: "fallback", hidden: true });
  private readonly reasoning = h("div", { class: "reasoning-text", dir: "auto" });
  private readonly thought = h(
    "details",
    { class: "reasoning", hidden: true },
    h("summary", {}, strings.reasoning),
    this.reasoning,
  );
  private readonly error = h("div", { class: "error", role: "alert", testid: "error", hidden: true });
  private readonly meta = h("div", { class: "meta", testid: "meta" });
  private readonly stop: HTMLButtonElement;
  private readonly retry: HTMLButtonElement;
  private readonly again: HTMLButtonElement;
  private readonly copy: HTMLButtonElement;
  private readonly turn: Turn;
  private text = "";

  constructor(turn: Turn, actions: AnswerActions) {
    this.turn = turn;
    this.stop = action("stop", strings.actions.stop, () => actions.stop(turn));
    this.retry = action("retry", strings.actions.retry, () => actions.retry(turn));
    this.again = action("again", strings.actions.askAgain, () => actions.askAgain(turn));
    this.copy = action("copy", strings.actions.copy, () => void copyText(this.text, this.copy));
    this.article = h(
      "article",
      { class: "answer", testid: "answer", "aria-label": strings.answer },
      h("header", {}, h("span", { class: "mark" }, icon("wave")), this.name, this.pill, this.stop),
      this.notice,
      this.thought,
      h("div", { class: "body", testid: "answer-text" }, this.markdown.element),
      this.error,
      h("footer", {}, this.meta, h("div", { class: "answer-actions" }, this.retry, this.copy, this.again)),
    );
    this.element = h(
      "section",
      { class: "turn", testid: "turn", "data-id": turn.id },
      h(
        "div",
        { class: "question", testid: "question" },
        h("span", { class: "visually-hidden" }, strings.you),
        h("div", { class: "bubble", dir: "auto" }, turn.question),
      ),
      this.article,
    );
  }

  /** Show the message as it stands. `connected`: whether frames can arrive. */
  showMessage(message: Message, connected: boolean): void {
    const shown = shownState(message, connected);
    this.article.dataset.state = shown === "streaming" || shown === "thinking" ? "streaming" : shown;
    setText(this.pill, pillText(shown, message));
    this.pill.dataset.state = shown;
    this.show({ ...answerOf(message), open: true });
  }

  /** Show how it ended. */
  showAnswer(answer: Answer): void {
    this.article.dataset.state = answer.state;
    setText(this.pill, answer.state === "done" ? "" : strings.state[answer.state]);
    this.pill.dataset.state = answer.state;
    this.show({ ...answer, open: false });
  }

  private show(answer: Answer & { open: boolean }): void {
    if (answer.text !== this.text) {
      this.text = answer.text;
      this.markdown.update(answer.text);
    }
    this.article.dataset.resumes = String(answer.resumes);
    this.article.setAttribute("aria-busy", String(answer.open));
    setText(this.name, answer.model ?? this.turn.model ?? strings.brand);
    this.thought.hidden = !answer.reasoning;
    setText(this.reasoning, answer.reasoning);
    this.notice.hidden = answer.switched === undefined;
    const reason = strings.errors.codes[answer.switched ?? ""] ?? strings.fallbackNoReason;
    setText(this.notice, strings.fallback(answer.target ?? "", reason));
    this.showError(answer.error);
    this.showMeta(answer);
    this.stop.hidden = !answer.open;
    this.retry.hidden = answer.open || answer.state !== "failed";
    this.again.hidden = answer.open || answer.state === "failed";
    this.copy.hidden = answer.open || !answer.text;
  }

  private showError(error: ErrorBody | undefined): void {
    this.error.hidden = !error;
    if (!error) return;
    const wait = error.retry_after_ms ? ` ${strings.errors.retryIn(Math.ceil(error.retry_after_ms / 1000))}` : "";
    this.error.dataset.code = error.code;
    const shown = (strings.errors.codes[error.code] ?? strings.errors.unknown) + wait;
    if (this.error.textContent !== shown) this.error.replaceChildren(icon("alert"), h("span", {}, shown));
  }

  private showMeta(answer: Answer & { open: boolean }): void {
    const text = strings.meta;
    const ended = !answer.open;
    const parts = [
      answer.target,
      ended && answer.outputTokens ? text.tokens(answer.outputTokens) : undefined,
      this.turn.firstTokenMs === undefined ? undefined : text.firstToken(this.turn.firstTokenMs),
      answer.attempts && (ended || answer.attempts > 1) ? text.attempts(answer.attempts) : undefined,
      answer.resumes > 0 ? text.resumed(answer.resumes) : undefined,
      answer.seq ? text.seq(answer.seq) : undefined,
      answer.prompt ? text.prompt(answer.prompt.name, answer.prompt.version) : undefined,
      answer.costUsd === undefined ? undefined : text.cost(answer.costUsd),
      answer.finishReason === "length" ? text.length : undefined,
    ];
    const spans = parts.filter((part): part is string => !!part).map((part) => h("span", {}, part));
    if (answer.state === "done" && ended) {
      spans.push(h("span", { class: "whole", title: text.wholeHint, testid: "whole" }, icon("check"), text.whole));
    }
    const shown = spans.map((span) => span.textContent).join();
    if (this.meta.dataset.shown === shown) return;
    this.meta.dataset.shown = shown;
    this.meta.replaceChildren(...spans);
  }
}

function action(name: "stop" | "retry" | "again" | "copy", label: string, onClick: () => void): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: `action action-${name}`, testid: name, title: label, onclick: onClick, hidden: true },
    icon(name),
    h("span", {}, label),
  );
}

function shownState(message: Message, connected: boolean): Shown {
  if (message.state === "sending") return connected ? "waiting" : "offline";
  if (!connected) return "paused";
  if (message.cancelRequested) return "stopping";
  if (message.state === "resyncing" || message.state === "stalled") return "resuming";
  if (message.serverState === "queued" || message.serverState === "admitting") return "queued";
  return message.text ? "streaming" : "thinking";
}

function pillText(shown: Shown, message: Message): string {
  if (shown === "queued" && message.queuePosition) return strings.state.queuedAt(message.queuePosition);
  return strings.state[shown];
}
