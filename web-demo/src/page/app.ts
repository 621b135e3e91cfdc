/** The page: it wires the client library to the views. */

import {
  type Client,
  type ClientEvent,
  type ClientOptions,
  type Message,
  newId,
  type Status,
} from "../client/index.ts";
import { ask } from "./backend.ts";
import { type CodecName, loadCodec } from "./codec.ts";
import { Composer } from "./composer.ts";
import { ConfirmDialog } from "./confirm.ts";
import { ConnectionView } from "./connection.ts";
import { h, setText } from "./dom.ts";
import { emptyState } from "./empty.ts";
import { draw } from "./frame.ts";
import { History } from "./history.ts";
import { type Feature, Pane } from "./pane.ts";
import { Panel } from "./panel.ts";
import { settingsMenu, storageOf, tokenDialog } from "./settings.ts";
import { Sidebar } from "./sidebar.ts";
import { strings } from "./strings.ts";
import { sendTwice } from "./twice.ts";
import { MOST_PANES, Workspace } from "./workspace.ts";

/** How long the "cut" button keeps the connection down, in milliseconds: long enough to see it. */
const CUT_MS = 2500;
/** How often the connection is checked while the page is looked at, in milliseconds, so that the figure is fresh. */
const ROUND_TRIP_EVERY_MS = 5000;
/** How much of a finished answer is read out, in characters. */
const READ_OUT = 400;
const UNAUTHENTICATED = 4401;

export class App {
  readonly client: Client;
  private readonly options: ClientOptions;
  private readonly history: History;
  private readonly workspace: Workspace;
  private readonly live = h("div", { class: "visually-hidden", "aria-live": "polite", testid: "live" });
  private readonly composer: Composer;
  private readonly connection: ConnectionView;
  private readonly sidebar: Sidebar;
  private readonly settings: ReturnType<typeof settingsMenu>;
  private readonly token: ReturnType<typeof tokenDialog>;
  private readonly confirm = new ConfirmDialog();
  private readonly panel: Panel;
  private element: HTMLElement | undefined;
  /** Why the link that led here was of no use. */
  private refusal = "";
  /** Nothing was open in this tab: the latest chat is opened as soon as the list is there. */
  private undecided = false;

  /** `options`: how to connect once more, beside `client`. */
  constructor(client: Client, options: ClientOptions) {
    this.client = client;
    this.options = options;
    this.history = new History(client, () => this.onList());
    this.workspace = new Workspace((id) => this.makePane(id), storageOf("sessionStorage"));
    this.composer = new Composer((question) => this.ask(question), storageOf("localStorage"));
    this.connection = new ConnectionView({
      cut: () => this.client.cut(CUT_MS),
      reconnect: () => this.client.reconnect(),
      openAnswers: () => this.client.session.unfinished.length,
    });
    this.sidebar = new Sidebar({
      newChat: () => this.open([newId()], true),
      choose: (chat) => this.open([chat]),
      beside: (chat) => this.beside(chat, false),
      rename: (chat, title) => this.history.rename(chat, title),
      remove: (chat) => this.askToRemove(chat),
      more: () => this.history.more(),
    });
    this.settings = settingsMenu({
      onCodec: (codec) => void this.changeCodec(codec),
      onClear: () => this.confirm.ask(strings.confirm.all, strings.confirm.text, () => this.clear()),
    });
    this.token = tokenDialog((token) => this.client.setToken(token));
    this.panel = new Panel({
      client,
      route: () => this.composer.model ?? "default",
      chat: () => (this.workspace.active.fresh ? undefined : this.workspace.active.id),
      cut: () => this.client.cut(CUT_MS),
      twice: () => void this.askTwice(),
      onToggle: (open) => {
        if (this.element) this.element.dataset.panel = open ? "open" : "closed";
      },
    });
  }

  /** Put the page into `root` and go on with what was open; `chat`: look at this one. */
  start(root: HTMLElement, refusal = "", chat?: string): void {
    this.refusal = refusal;
    this.element = this.layout();
    root.append(this.element);
    this.panel.start();
    this.client.on((event) => this.onEvent(event));
    document.addEventListener("keydown", (event) => this.onKey(event));
    const kept = chat === undefined ? this.workspace.kept() : [chat];
    this.undecided = kept.length === 0;
    if (this.undecided) this.open([newId()], true);
    else this.open(kept);
    this.client.start();
    setInterval(() => {
      if (document.visibilityState === "visible") this.client.probe();
    }, ROUND_TRIP_EVERY_MS);
    void this.loadModels();
  }

  // --- what the user does --------------------------------------------------------------------------------------------

  private ask(question: string): string {
    const feature: Feature = this.workspace.panes.length > 1 ? "parallel" : "chat";
    this.undecided = false;
    setText(this.live, strings.live.asked);
    return this.workspace.active.ask(question, feature);
  }

  /** Several questions at once, each in a chat of its own, side by side. */
  private askBeside(questions: readonly string[]): void {
    const ids = questions.slice(0, MOST_PANES).map(() => newId());
    this.open(ids, true);
    this.workspace.panes.forEach((pane, at) => {
      pane.ask(questions[at] ?? "", "parallel");
    });
    this.undecided = false;
  }

  /** What stands in the composer, or a suggestion, with one id over two connections. */
  private async askTwice(): Promise<void> {
    const { controls } = this.panel;
    const id = this.ask(this.composer.take() || strings.suggestions[0]?.text || "");
    const request = this.client.session.messages.get(id)?.request;
    if (!request) return;
    const text = strings.controls;
    controls.say(text.sending);
    try {
      const { path, attached, same, attempts, tokens, costUsd } = await sendTwice(this.client, request, this.options);
      if (attached && same) controls.say(text.sentTwice(id, attempts, tokens, strings.meta.cost(costUsd)), path);
      else controls.say(text.notTheSame, path);
    } catch {
      controls.say(text.notTold);
    }
  }

  private onKey(event: KeyboardEvent): void {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (document.querySelector("dialog[open], :popover-open")) return;
    if (this.workspace.active.stopLatest()) event.preventDefault();
  }

  private async changeCodec(name: CodecName): Promise<void> {
    this.client.setCodec(await loadCodec(name));
  }

  private open(chats: readonly string[], fresh = false): void {
    this.workspace.open(chats, fresh);
    this.afterOpening();
  }

  private beside(chat: string, fresh: boolean): void {
    if (!this.workspace.add(chat, fresh)) setText(this.live, strings.panes.full(MOST_PANES));
    this.afterOpening();
  }

  private afterOpening(): void {
    this.refresh();
    this.composer.input.focus({ preventScroll: true });
  }

  private askToRemove(chat: string): void {
    const title = this.history.chats.get(chat)?.title || strings.untitled;
    this.confirm.ask(strings.confirm.title(title), strings.confirm.text, () => this.remove(chat));
  }

  private remove(chat: string): void {
    this.history.remove(chat);
    const pane = this.workspace.panes.find(({ id }) => id === chat);
    if (pane && !this.workspace.close(pane)) this.open([newId()], true);
    this.refresh();
  }

  private clear(): void {
    this.open([newId()], true);
    this.history.clear();
  }

  // --- what the server does ------------------------------------------------------------------------------------------

  private onEvent(event: ClientEvent): void {
    this.panel.onEvent(event);
    if (event.type === "conversation" && event.frame.op === "list") this.history.onList(event.frame);
    else this.workspace.onEvent(event);
    if (event.type === "welcomed") this.history.onOpen();
    // Each admission and settlement of the user, on any device, is told by a `quota` frame: the list has changed.
    else if (event.type === "quota" || event.type === "notice") this.history.soon();
    else if (event.type === "status") this.onStatus(event.status);
    else if (event.type === "ended") this.onEnded(event.message);
    else if (event.type === "conversation" && event.frame.op === "deleted") this.onDeleted(event.frame.conversation);
  }

  private onStatus(status: Status): void {
    this.connection.show(status);
    this.settings.show(status);
    if (status.phase === "stopped" && status.closeCode === UNAUTHENTICATED) this.token.open(this.refusal);
  }

  private onEnded(message: Message): void {
    const { state } = message;
    const { total_tokens: tokens = 0 } = message.usage ?? {};
    const cost = message.end?.type === "done" ? (message.end.cost_usd ?? 0) : 0;
    this.panel.books.book(message.id, String(message.request?.metadata?.feature ?? strings.elsewhere), tokens, cost);
    const { live } = strings;
    const told =
      state === "done"
        ? live.finished(message.text.slice(0, READ_OUT))
        : state === "cancelled"
          ? live.stopped
          : live.failed;
    setText(this.live, told);
  }

  /** Another device deleted a chat. */
  private onDeleted(chat: string | null | undefined): void {
    const pane = this.workspace.panes.find(({ id }) => id === chat);
    if (!chat || !pane) return;
    this.history.chats.remove(chat);
    if (!this.workspace.close(pane)) this.open([newId()], true);
  }

  private onList(): void {
    const latest = this.history.chats.shown()[0];
    if (this.undecided && latest && this.workspace.active.fresh) this.open([latest.id]);
    this.undecided = false;
    this.refresh();
  }

  // --- drawing -------------------------------------------------------------------------------------------------------

  private makePane(id: string): Pane {
    const empty = emptyState({
      ask: (question) => {
        this.workspace.activate(pane);
        this.ask(question);
      },
      several: (questions) => this.askBeside(questions),
    });
    const pane: Pane = new Pane(id, empty, {
      client: this.client,
      model: () => this.composer.model,
      onBusy: () => this.composer.onBusy,
      activate: (which) => {
        if (this.workspace.active === which) return;
        this.workspace.activate(which);
        draw(this.refresh);
      },
      close: (which) => {
        this.workspace.close(which);
        this.refresh();
      },
      takenBack: (text) => this.composer.putBack(text),
      changed: () => draw(this.refresh),
    });
    return pane;
  }

  private readonly refresh = (): void => {
    const { chats } = this.history;
    const { panes, active } = this.workspace;
    for (const pane of panes) {
      if (!pane.fresh) chats.seen({ id: pane.id, title: pane.title, busy: pane.busy, updated: Date.now() / 1000 });
    }
    this.sidebar.show((wanted) => chats.shown(wanted), new Set(panes.map(({ id }) => id)));
    if (this.sidebar.searching) this.history.more();
    this.composer.aim(active.busy, panes.length > 1 ? active.title : undefined);
  };

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
        this.workspace.element,
        this.composer.element,
      ),
      this.panel.element,
      this.panel.controls.devices.element,
      this.token.dialog,
      this.confirm.element,
      this.live,
    );
  }

  private async loadModels(): Promise<void> {
    try {
      const { data } = await ask<{ data?: { id?: unknown }[] }>("/v1/models");
      this.composer.offerModels((data ?? []).flatMap((entry) => (typeof entry.id === "string" ? [entry.id] : [])));
    } catch {
      // No list, no picker: the server's default model answers.
    }
  }
}
