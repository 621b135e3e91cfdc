/** One question with its answer, on the page. */

import { type ErrorBody, type Message, sha256, utf8 } from "../client/index.ts";
import { Chooser } from "./chooser.ts";
import type { Conversation, Turn } from "./conversation.ts";
import { action, h, icon, setText } from "./dom.ts";
import { copyText, MarkdownView } from "./markdown.ts";
import { QuestionView } from "./question.ts";
import { strings } from "./strings.ts";

export interface TurnActions {
  stop(turn: Turn): void;
  /** Take an input back that waits for its turn. */
  takeBack(turn: Turn, text: string): void;
  retry(turn: Turn): void;
  regenerate(turn: Turn): void;
  edit(turn: Turn, text: string): void;
  /** Show the branch that goes through this entry. */
  choose(entry: string): void;
}

/** What a turn is drawn from. */
export interface TurnSource {
  conversation: Conversation;
  turn: Turn;
  message: Message | undefined;
  /** Whether frames can arrive. */
  connected: boolean;
  /** From asking to the first text, in milliseconds, if it was asked here. */
  firstTokenMs: number | undefined;
}

type Shown =
  | "waiting"
  | "offline"
  | "queued"
  | "thinking"
  | "streaming"
  | "paused"
  | "resuming"
  | "stopping"
  | "done"
  | "failed"
  | "cancelled"
  | "interrupted"
  | "unanswered";

const OPEN: ReadonlySet<Shown> = new Set(
  "waiting offline queued thinking streaming paused resuming stopping".split(" ") as Shown[],
);

export class TurnView {
  readonly element: HTMLElement;
  private readonly article: HTMLElement;
  private readonly question: QuestionView;
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
  private readonly chooser: Chooser;
  private readonly stop: HTMLButtonElement;
  private readonly back: HTMLButtonElement;
  private readonly retry: HTMLButtonElement;
  private readonly again: HTMLButtonElement;
  private readonly copy: HTMLButtonElement;
  private turn: Turn;
  private text = "";
  /** The text that was compared last, with what, and how that went. */
  private compared: { text: string; hash: string; same: boolean } | undefined;

  constructor(turn: Turn, actions: TurnActions) {
    this.turn = turn;
    this.question = new QuestionView({
      edit: (text) => actions.edit(this.turn, text),
      choose: (entry) => actions.choose(entry),
    });
    this.chooser = new Chooser(strings.branches.answers, (entry) => actions.choose(entry));
    this.stop = action("stop", strings.actions.stop, () => actions.stop(this.turn));
    this.back = action("back", strings.actions.takeBack, () => actions.takeBack(this.turn, this.question.text));
    this.retry = action("retry", strings.actions.retry, () => actions.retry(this.turn));
    this.again = action("again", strings.actions.regenerate, () => actions.regenerate(this.turn));
    this.copy = action("copy", strings.actions.copy, () => void copyText(this.text, this.copy));
    this.article = h(
      "article",
      { class: "answer", testid: "answer", "aria-label": strings.answer },
      h("header", {}, h("span", { class: "mark" }, icon("wave")), this.name, this.pill, this.stop, this.back),
      this.notice,
      this.thought,
      h("div", { class: "body", testid: "answer-text" }, this.markdown.element),
      this.error,
      h(
        "footer",
        {},
        this.meta,
        h("div", { class: "answer-actions" }, this.chooser.element, this.retry, this.copy, this.again),
      ),
    );
    this.element = h(
      "section",
      { class: "turn", testid: "turn", "data-id": turn.id },
      this.question.element,
      this.article,
    );
  }

  show(source: TurnSource): void {
    const { conversation, turn, message, connected } = source;
    this.turn = turn;
    const shown = shownState(turn, message, connected);
    const open = OPEN.has(shown);
    this.question.show(conversation, turn, !open);
    this.article.dataset.state = shown === "thinking" ? "streaming" : shown;
    this.article.hidden = shown === "unanswered" && !turn.question;
    this.article.setAttribute("aria-busy", String(open));
    setText(this.pill, pillText(shown, turn));
    this.pill.dataset.state = shown;
    this.showText(source, open);
    this.showNotice(message);
    this.showError(message?.error ?? turn.answer?.error, open);
    this.showMeta(source, open, shown);
    this.chooser.show(conversation, turn.answer);
    this.stop.hidden = !open || shown === "queued" || shown === "offline";
    this.back.hidden = shown !== "queued" && shown !== "offline";
    this.retry.hidden = open || (shown !== "failed" && shown !== "unanswered");
    this.again.hidden = open || shown === "failed" || !turn.question;
    this.copy.hidden = open || !this.text;
  }

  private showText({ conversation, turn, message }: TurnSource, open: boolean): void {
    const kept = turn.answer?.text === undefined ? undefined : conversation.textOf(turn.answer);
    const text = (open ? undefined : kept) ?? message?.text ?? "";
    if (text !== this.text) {
      this.text = text;
      this.markdown.update(text);
    }
    const reasoning = message?.reasoning ?? "";
    this.thought.hidden = !reasoning;
    setText(this.reasoning, reasoning);
  }

  private showNotice(message: Message | undefined): void {
    const attempt = message?.attempts.at(-1);
    const switched = attempt !== undefined && attempt.attempt > 1;
    this.notice.hidden = !switched;
    if (!switched) return;
    setText(this.notice, strings.attempts.notice(attempt.target, String(attempt.reason?.code ?? "")));
  }

  private showError(error: ErrorBody | undefined, open: boolean): void {
    this.error.hidden = !error || open;
    if (!error) return;
    const wait = error.retry_after_ms ? ` ${strings.errors.retryIn(Math.ceil(error.retry_after_ms / 1000))}` : "";
    this.error.dataset.code = error.code;
    const shown = strings.errors.of(error.code) + wait;
    if (this.error.textContent !== shown) this.error.replaceChildren(icon("alert"), h("span", {}, shown));
  }

  /** Whether the text that is shown, streamed or from the history, has this hash. */
  private is(hash: string | undefined): boolean {
    if (hash === undefined) return false;
    const { text } = this;
    if (this.compared?.text !== text || this.compared.hash !== hash) {
      this.compared = { text, hash, same: sha256(utf8(text)) === hash };
    }
    return this.compared.same;
  }

  private showMeta({ turn, message, firstTokenMs }: TurnSource, open: boolean, shown: Shown): void {
    const text = strings.meta;
    const { answer } = turn;
    const done = message?.end?.type === "done" ? message.end : undefined;
    const attempt = message?.attempts.at(-1);
    const attempts = done?.attempts ?? answer?.attempts ?? message?.attempt ?? 0;
    const resumes = (message?.reconnects ?? 0) + (message?.resyncs ?? 0);
    const tokens = (message?.usage ?? answer?.usage)?.output_tokens;
    const prompt = done?.prompt ?? answer?.prompt;
    const cost = done?.cost_usd ?? answer?.cost_usd;
    this.article.dataset.resumes = String(resumes);
    setText(this.name, done?.model ?? answer?.model ?? attempt?.model ?? strings.brand);
    const parts = [
      done?.target ?? answer?.target ?? attempt?.target,
      !open && tokens ? text.tokens(tokens) : undefined,
      firstTokenMs === undefined ? undefined : text.firstToken(firstTokenMs),
      attempts > (open ? 1 : 0) ? text.attempts(attempts) : undefined,
      resumes > 0 ? text.resumed(resumes) : undefined,
      message && message.cursor > 0 ? text.seq(message.cursor) : undefined,
      prompt ? text.prompt(prompt.name, prompt.version) : undefined,
      cost == null || open ? undefined : text.cost(cost),
      (done?.finish_reason ?? answer?.finish_reason) === "length" ? text.length : undefined,
    ];
    const spans = parts.filter((part): part is string => !!part).map((part) => h("span", {}, part));
    if (shown === "done" && this.is(done?.text_sha256 ?? answer?.text_sha256)) {
      spans.push(h("span", { class: "whole", title: text.wholeHint, testid: "whole" }, icon("check"), text.whole));
    }
    const told = spans.map((span) => span.textContent).join();
    if (this.meta.dataset.shown === told) return;
    this.meta.dataset.shown = told;
    this.meta.replaceChildren(...spans);
  }
}

function shownState(turn: Turn, message: Message | undefined, connected: boolean): Shown {
  if (message && !message.ended) return liveState(turn, message, connected);
  const ended = turn.answer?.state;
  if (ended === "interrupted" || (ended && ended !== "running" && !message)) return ended as Shown;
  if (message) return message.state === "done" || message.state === "cancelled" ? message.state : "failed";
  if (ended === "running") return connected ? "thinking" : "paused";
  return turn.position > 0 ? "queued" : "unanswered";
}

function liveState(turn: Turn, message: Message, connected: boolean): Shown {
  if (message.state === "sending") return connected ? "waiting" : "offline";
  if (!connected) return "paused";
  if (message.cancelRequested) return "stopping";
  if (message.state === "resyncing" || message.state === "stalled") return "resuming";
  if (turn.position > 0 || message.serverState === "queued" || message.serverState === "admitting") return "queued";
  return message.text ? "streaming" : "thinking";
}

function pillText(shown: Shown, turn: Turn): string {
  if (shown === "done") return "";
  if (shown === "queued" && turn.position > 0) return strings.state.queuedAt(turn.position);
  return strings.state[shown];
}
