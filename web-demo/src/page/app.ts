/** The page: it wires the client library to the views and keeps the turns. */

import {
  type Client,
  type ClientEvent,
  type ClientOptions,
  type Message,
  newId,
  type Status,
} from "../client/index.ts";
import { TurnView } from "./answer.ts";
import { type CodecName, loadCodec } from "./codec.ts";
import { Composer } from "./composer.ts";
import { ConnectionView } from "./connection.ts";
import { h, icon, setText } from "./dom.ts";
import { draw } from "./frame.ts";
import { Panel } from "./panel.ts";
import { preferences, settingsMenu, storageOf, tokenDialog } from "./settings.ts";
import { Sidebar } from "./sidebar.ts";
import { strings } from "./strings.ts";
import { Transcript } from "./transcript.ts";
import { answerOf, context, type Turn, TurnStore } from "./turns.ts";
import { sendTwice } from "./twice.ts";

/** How long the "cut" button keeps the connection down, in milliseconds: long enough to see it. */
const CUT_MS = 2500;
/** How often the connection is checked while the page is looked at, in milliseconds, so that the figure is fresh. */
const ROUND_TRIP_EVERY_MS = 5000;
/** How much of a finished answer is read out, in characters. */
const READ_OUT = 400;
const UNAUTHENTICATED = 4401;
const ENDED = new Set(["done", "failed", "cancelled"]);
const CHAT_KEY = "tidewire.chat";

export class App {
  readonly client: Client;
  private readonly options: ClientOptions;
  private readonly local = storageOf("localStorage");
  private readonly store = new TurnStore(this.local);
  private readonly turns = new Map<string, Turn>();
  private readonly views = new Map<string, TurnView>();
  private readonly askedAt = new Map<string, number>();
  private chat: string;

  private readonly live = h("div", { class: "visually-hidden", "aria-live": "polite", testid: "live" });
  private readonly empty: HTMLElement;
  private readonly transcript: Transcript;
  private readonly composer: Composer;
  private readonly connection: ConnectionView;
  private readonly sidebar: Sidebar;
  private readonly settings: ReturnType<typeof settingsMenu>;
  private readonly token: ReturnType<typeof tokenDialog>;
  private readonly panel: Panel;
  private element: HTMLElement | undefined;
  /** Why the link that led here was of no use. */
  private refusal = "";

  /** `options`: how to connect once more, beside `client`. */
  constructor(client: Client, options: ClientOptions) {
    this.client = client;
    this.options = options;
    for (const turn of this.store.load()) this.turns.set(turn.id, turn);
    this.chat = storageOf("sessionStorage")?.getItem(CHAT_KEY) ?? [...this.turns.values()].at(-1)?.chat ?? newId();
    this.empty = this.emptyState();
    this.transcript = new Transcript(this.empty);
    this.composer = new Composer((question) => this.ask(question), this.local);
    this.connection = new ConnectionView({
      cut: () => this.client.cut(CUT_MS),
      reconnect: () => this.client.reconnect(),
      openAnswers: () => this.client.session.unfinished.length,
    });
    this.sidebar = new Sidebar({
      newChat: () => this.openChat(newId()),
      choose: (chat) => this.openChat(chat),
      remove: (chat) => this.removeChat(chat),
    });
    this.settings = settingsMenu({
      onCodec: (codec) => void this.changeCodec(codec),
      onClear: () => this.clear(),
    });
    this.token = tokenDialog((token) => this.client.setToken(token));
    this.panel = new Panel({
      client,
      route: () => this.composer.model ?? "default",
      cut: () => this.client.cut(CUT_MS),
      twice: () => void this.askTwice(),
      onToggle: (open) => {
        if (this.element) this.element.dataset.panel = open ? "open" : "closed";
      },
    });
  }

  /** Put the page into `root` and go on with what was open. */
  start(root: HTMLElement, refusal = "", follow?: string): void {
    this.refusal = refusal;
    this.element = this.layout();
    root.append(this.element);
    this.panel.start();
    this.client.on((event) => this.onEvent(event));
    document.addEventListener("keydown", (event) => this.onKey(event));
    window.addEventListener("storage", (event) => this.onOtherTab(event));
    if (follow && /^[\w-]{1,64}$/.test(follow)) this.adopt(follow, true);
    this.openChat(this.chat);
    this.pickUp();
    this.client.start();
    setInterval(() => {
      if (document.visibilityState === "visible") this.client.probe();
    }, ROUND_TRIP_EVERY_MS);
    void this.loadModels();
  }

  // --- what the user does --------------------------------------------------------------------------------------------

  /** Ask; returns the id of the message. */
  private ask(question: string): string {
    const id = newId();
    const mine = this.chatTurns(this.chat);
    const open = mine.filter((turn) => !turn.answer);
    const model = this.composer.model;
    const turn: Turn = { id, chat: this.chat, group: open.at(-1)?.group ?? id, question, acknowledged: false };
    if (model) turn.model = model;
    this.turns.set(id, turn);
    this.store.save(turn);
    this.addView(turn);
    this.askedAt.set(id, performance.now());
    this.send(turn, mine);
    this.refresh();
    this.transcript.toEnd();
    setText(this.live, strings.live.asked);
    return id;
  }

  /** What stands in the composer, or a suggestion, with one id over two connections. */
  private async askTwice(): Promise<void> {
    const { controls } = this.panel;
    const id = this.ask(this.composer.take() || strings.suggestions[0]?.text || "");
    const message = this.client.session.messages.get(id);
    if (!message?.request) return;
    controls.say(strings.controls.sending);
    const told = await sendTwice(message, message.request, this.options);
    const cost = strings.meta.cost(told.costUsd ?? 0);
    controls.say(strings.controls.sentTwice(told.same, told.attached, told.attempts, told.tokens, cost));
  }

  private send(turn: Turn, earlier: Turn[]): void {
    this.client.send({
      id: turn.id,
      messages: context(earlier, turn.question),
      metadata: { feature: featureOf(turn) },
      ...(turn.model && { model: turn.model }),
    });
    this.showTurn(turn);
  }

  private retry(turn: Turn): void {
    if (this.client.session.messages.get(turn.id)?.retryable && this.client.retry(turn.id)) {
      delete turn.answer;
      this.store.save(turn);
      this.showTurn(turn);
      this.refresh();
    } else {
      this.ask(turn.question);
    }
  }

  private stopLatest(): boolean {
    const open = this.chatTurns(this.chat).filter((turn) => !turn.answer);
    const latest = open.at(-1);
    if (latest) this.client.cancel(latest.id);
    return latest !== undefined;
  }

  private onKey(event: KeyboardEvent): void {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (document.querySelector("dialog[open], :popover-open")) return;
    if (this.stopLatest()) event.preventDefault();
  }

  private async changeCodec(name: CodecName): Promise<void> {
    this.client.setCodec(await loadCodec(name));
  }

  // --- what the server does ------------------------------------------------------------------------------------------

  private onEvent(event: ClientEvent): void {
    this.panel.onEvent(event);
    if (event.type === "welcomed") for (const { id, state } of event.frame.active) this.found(id, state);
    if (event.type === "status") this.onStatus(event.status);
    else if ("message" in event && event.message) this.onMessage(event.message, event.type);
  }

  private onStatus(status: Status): void {
    this.connection.show(status);
    this.settings.show(status);
    for (const message of this.client.session.unfinished) this.showSoon(message);
    if (status.phase === "stopped" && status.closeCode === UNAUTHENTICATED) this.token.open(this.refusal);
  }

  private onMessage(message: Message, what: ClientEvent["type"]): void {
    const turn = this.turns.get(message.id);
    if (!turn) return;
    if (what === "output") this.firstToken(turn, message);
    if (!turn.acknowledged && message.state !== "sending" && message.state !== "refused") {
      turn.acknowledged = true;
      this.store.save(turn);
    }
    if (what === "ended") this.onEnded(turn, message);
    else this.showSoon(message);
  }

  private firstToken(turn: Turn, message: Message): void {
    const asked = this.askedAt.get(turn.id);
    if (asked === undefined || (!message.text && !message.reasoning)) return;
    this.askedAt.delete(turn.id);
    turn.firstTokenMs = Math.round(performance.now() - asked);
  }

  private onEnded(turn: Turn, message: Message): void {
    turn.answer = answerOf(message);
    this.panel.books.book(turn.id, featureOf(turn), turn.answer.totalTokens ?? 0, turn.answer.costUsd ?? 0);
    this.askedAt.delete(turn.id);
    this.store.save(turn);
    this.showSoon(message);
    this.refresh();
    const text = turn.answer.text.slice(0, READ_OUT);
    const { state } = turn.answer;
    setText(
      this.live,
      state === "done" ? strings.live.finished(text) : state === "failed" ? strings.live.failed : strings.live.stopped,
    );
  }

  /** The server says that an answer of this user runs: if no tab of this browser asked for it, another device did. */
  private found(id: string, state: string): void {
    if (this.turns.has(id) || this.client.session.messages.has(id) || ENDED.has(state)) return;
    this.adopt(id, false);
    this.client.follow(id);
    this.refresh();
  }

  /** Take an answer that was asked for on another device into the list of chats; `open`: and look at it. */
  private adopt(id: string, open: boolean): void {
    if (!this.turns.has(id)) {
      const turn: Turn = { id, chat: id, group: id, question: strings.askedElsewhere, acknowledged: true };
      this.turns.set(id, turn);
      this.store.save(turn);
    }
    if (open) this.chat = this.turns.get(id)?.chat ?? id;
  }

  /** Another tab of this browser asked, or got an answer. */
  private onOtherTab(event: StorageEvent): void {
    const turn = TurnStore.changed(event);
    if (!turn || this.client.session.messages.has(turn.id)) return;
    const known = this.turns.get(turn.id);
    if (!known && !turn.acknowledged) return;
    this.turns.set(turn.id, turn);
    if (!turn.answer) this.client.follow(turn.id);
    this.openChat(this.chat);
  }

  // --- turns and chats -----------------------------------------------------------------------------------------------

  /** After a reload: what the tab's storage did not bring back is followed, or sent again under its id. */
  private pickUp(): void {
    for (const turn of this.turns.values()) {
      if (turn.answer || this.client.session.messages.has(turn.id)) continue;
      if (turn.acknowledged) this.client.follow(turn.id);
      else this.send(turn, this.chatTurns(turn.chat, turn.group));
    }
  }

  /** The turns of a chat, up to (not with) the group `before`. */
  private chatTurns(chat: string, before?: string): Turn[] {
    const turns = [...this.turns.values()].filter((turn) => turn.chat === chat);
    const end = before === undefined ? -1 : turns.findIndex((turn) => turn.group === before);
    return end < 0 ? turns : turns.slice(0, end);
  }

  private openChat(chat: string): void {
    this.chat = chat;
    storageOf("sessionStorage")?.setItem(CHAT_KEY, chat);
    this.transcript.clear();
    this.views.clear();
    for (const turn of this.chatTurns(chat)) this.addView(turn);
    this.refresh();
    this.transcript.toEnd();
    this.composer.input.focus({ preventScroll: true });
  }

  private removeChat(chat: string): void {
    for (const turn of this.chatTurns(chat)) {
      this.client.cancel(turn.id);
      this.turns.delete(turn.id);
      this.store.remove(turn);
    }
    if (chat === this.chat) this.openChat([...this.turns.values()].at(-1)?.chat ?? newId());
    else this.refresh();
  }

  private clear(): void {
    for (const chat of new Set([...this.turns.values()].map((turn) => turn.chat))) this.removeChat(chat);
  }

  // --- drawing -------------------------------------------------------------------------------------------------------

  private addView(turn: Turn): void {
    const view = new TurnView(turn, {
      stop: (stopped) => {
        this.client.cancel(stopped.id);
        this.showTurn(stopped);
      },
      retry: (failed) => this.retry(failed),
      askAgain: (ended) => this.ask(ended.question),
    });
    this.views.set(turn.id, view);
    this.transcript.add(turn, view);
    this.showTurn(turn);
  }

  private showTurn(turn: Turn): void {
    const view = this.views.get(turn.id);
    const message = this.client.session.messages.get(turn.id);
    if (turn.answer) view?.showAnswer(turn.answer);
    else if (message) view?.showMessage(message, this.client.status.phase === "open");
  }

  private readonly drawings = new Map<string, () => void>();

  private showSoon(message: Message): void {
    const turn = this.turns.get(message.id);
    if (!turn || !this.views.has(turn.id)) return;
    let drawing = this.drawings.get(turn.id);
    if (!drawing) {
      drawing = () => this.showTurn(this.turns.get(turn.id) ?? turn);
      this.drawings.set(turn.id, drawing);
    }
    draw(drawing);
  }

  private refresh(): void {
    const chats = new Map<string, { id: string; title: string; open: number }>();
    for (const turn of this.turns.values()) {
      const entry = chats.get(turn.chat) ?? { id: turn.chat, title: turn.question, open: 0 };
      if (!turn.answer) entry.open++;
      chats.set(turn.chat, entry);
    }
    this.sidebar.show([...chats.values()].reverse(), this.chat);
    this.empty.hidden = chats.has(this.chat);
  }

  private layout(): HTMLElement {
    return h(
      "div",
      { class: "app" },
      this.sidebar.element,
      h(
        "main",
        {},
        h(
          "header",
          { class: "topbar" },
          this.sidebar.menuButton,
          h("h1", { class: "topbar-brand" }, strings.brand),
          h("div", { class: "spacer" }),
          this.connection.element,
          this.connection.cutButton,
          this.panel.button,
          this.settings.button,
          this.settings.menu,
        ),
        this.connection.banner,
        this.transcript.element,
        this.composer.element,
      ),
      this.panel.element,
      this.panel.controls.devices.element,
      this.token.dialog,
      this.live,
    );
  }

  private emptyState(): HTMLElement {
    const card = (title: string, text: string, questions: string[], extra: string): HTMLElement =>
      h(
        "button",
        {
          type: "button",
          class: `card ${extra}`,
          testid: "suggestion",
          onclick: () => {
            for (const question of questions) this.ask(question);
          },
        },
        h("strong", {}, title),
        h("span", {}, text),
      );
    return h(
      "div",
      { class: "empty", testid: "empty" },
      h("span", { class: "mark large" }, icon("wave")),
      h("h2", {}, strings.empty.title),
      h("p", {}, strings.empty.text),
      h(
        "div",
        { class: "cards" },
        ...strings.suggestions.map(({ title, text }) => card(title, text, [text], "")),
        card(strings.empty.several, strings.empty.severalHint, strings.threeAtOnce, "several"),
      ),
    );
  }

  private async loadModels(): Promise<void> {
    const token = preferences.token;
    try {
      const response = await fetch("/v1/models", token ? { headers: { authorization: `Bearer ${token}` } } : {});
      if (!response.ok) return;
      const { data } = (await response.json()) as { data?: { id?: unknown }[] };
      this.composer.offerModels((data ?? []).flatMap((entry) => (typeof entry.id === "string" ? [entry.id] : [])));
    } catch {
      // No list, no picker: the server's default model answers.
    }
  }
}

/** What a turn is booked under. */
function featureOf(turn: Turn): string {
  return turn.group === turn.id ? "chat" : "parallel";
}
