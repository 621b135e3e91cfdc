/** One open conversation: what stands in it, what is asked in it. Several stand side by side. */

import {
  type Client,
  type ConversationFrame,
  type ErrorFrame,
  type HistoryPage,
  type Message,
  type MessageNotice,
  newId,
  type SendRequest,
} from "../client/index.ts";
import { TurnView } from "./answer.ts";
import { Conversation, type Pending, type Turn, textOf } from "./conversation.ts";
import { h, icon, setText } from "./dom.ts";
import { draw } from "./frame.ts";
import { strings } from "./strings.ts";
import { Transcript } from "./transcript.ts";

/** So many entries are asked for at once. */
const PAGE = 40;
/** How a message ends that leaves nothing behind if it never was an entry: it was taken back, or its entry removed. */
const GONE = new Set("done cancelled lost".split(" "));

export type OnBusy = NonNullable<SendRequest["on_busy"]>;
export type Feature = "chat" | "parallel" | "regenerate" | "edit";

interface Surroundings {
  client: Client;
  /** The route that questions go to; undefined: the server's default. */
  model(): string | undefined;
  onBusy(): OnBusy;
  /** It was clicked or typed into. */
  activate(pane: Pane): void;
  close(pane: Pane): void;
  /** An input was taken back. */
  takenBack(text: string): void;
  /** Something that others show has changed: the title, whether it is busy. */
  changed(pane: Pane): void;
}

export class Pane {
  readonly element: HTMLElement;
  readonly conversation: Conversation;
  /** What was asked first, for as long as there is no title. */
  firstQuestion = "";
  private readonly around: Surroundings;
  private readonly transcript: Transcript;
  private readonly heading = h("h2", { class: "pane-title", dir: "auto" });
  private readonly views = new Map<string, TurnView>();
  private readonly askedAt = new Map<string, number>();
  private readonly firstTokens = new Map<string, number>();
  private readonly pieces = new Map<string, string>();
  private readonly empty: HTMLElement;
  private turns: Turn[] = [];
  private subscribed = false;
  private titled = false;
  private loading = false;

  constructor(id: string, empty: HTMLElement, around: Surroundings) {
    this.conversation = new Conversation(id);
    this.around = around;
    this.empty = empty;
    this.transcript = new Transcript(empty, () => this.readOlder());
    this.element = h(
      "div",
      {
        class: "pane",
        testid: "pane",
        onpointerdown: () => around.activate(this),
        onfocusin: () => around.activate(this),
      },
      h(
        "div",
        { class: "pane-head" },
        this.heading,
        h(
          "button",
          {
            type: "button",
            class: "icon-button",
            testid: "close-pane",
            "aria-label": strings.panes.close,
            title: strings.panes.close,
            onclick: () => around.close(this),
          },
          icon("close"),
        ),
      ),
      this.transcript.element,
    );
  }

  get id(): string {
    return this.conversation.id;
  }

  get title(): string {
    return this.conversation.title || this.firstQuestion || strings.untitled;
  }

  /** Whether nothing was ever asked in it. */
  get fresh(): boolean {
    return this.turns.length === 0 && this.conversation.tip === undefined;
  }

  /** Whether an answer runs or waits here. */
  get busy(): boolean {
    const { messages } = this.around.client.session;
    const waiting = this.pending().some(({ id }) => !messages.get(id)?.ended);
    return this.conversation.current !== undefined || waiting || this.running().length > 0;
  }

  /** Ask for what the server has of it, then follow it. `fresh`: it is known that the server has nothing. */
  open(fresh: boolean): void {
    if (fresh) this.conversation.known = true;
    else this.read();
    this.render();
  }

  /** Leave it; what runs in it goes on. */
  leave(): void {
    if (this.subscribed) this.around.client.unsubscribe(this.id);
  }

  // --- what the user does --------------------------------------------------------------------------------------------

  /** Ask; returns the id of the message. */
  ask(input: string, feature: Feature = "chat"): string {
    if (!this.firstQuestion && this.turns.length === 0) this.firstQuestion = input;
    const id = this.send({ input }, feature);
    this.transcript.toEnd();
    return id;
  }

  /** Stop what was asked last; false if nothing runs. */
  stopLatest(): boolean {
    const open = [...this.pending().map(({ id }) => id), ...this.running()];
    const latest = open.sort().at(-1);
    if (latest !== undefined) this.stop(latest);
    return latest !== undefined;
  }

  private send(what: Pick<SendRequest, "input" | "parent">, feature: Feature): string {
    const { client } = this.around;
    const id = newId();
    const model = this.around.model();
    const busy = this.busy;
    this.subscribe(0);
    this.askedAt.set(id, performance.now());
    client.send({
      id,
      conversation: this.id,
      ...what,
      metadata: { feature },
      ...(model && { model }),
      ...(busy && { on_busy: this.around.onBusy() }),
    });
    this.render();
    return id;
  }

  private regenerate(turn: Turn): void {
    const parent = turn.question?.id;
    if (parent !== undefined) this.send({ parent }, "regenerate");
  }

  private retry(turn: Turn): void {
    const { client } = this.around;
    if (client.session.messages.get(turn.id)?.retryable && client.retry(turn.id)) this.render();
    else if (turn.question) this.regenerate(turn);
    else if (turn.asked) {
      client.forget(turn.id);
      this.ask(turn.asked);
    }
  }

  private stop(id: string): void {
    const { client } = this.around;
    if (!client.session.messages.has(id)) client.follow(id);
    client.cancel(id);
    this.render();
  }

  private readonly actions = {
    stop: (turn: Turn) => this.stop(turn.id),
    takeBack: (turn: Turn, text: string) => {
      this.stop(turn.id);
      if (!turn.question) this.around.takenBack(text);
    },
    retry: (turn: Turn) => this.retry(turn),
    regenerate: (turn: Turn) => this.regenerate(turn),
    edit: (turn: Turn, input: string) => {
      if (turn.question) this.send({ input, parent: turn.question.parent ?? this.id }, "edit");
    },
    choose: (entry: string) => this.around.client.conversation({ op: "choose", conversation: this.id, entry }),
  };

  // --- what the server says ------------------------------------------------------------------------------------------

  onHistory(frame: HistoryPage): void {
    this.loading = false;
    const keep = this.transcript.keepPlace();
    this.conversation.page(frame);
    for (const shown of frame.messages) if (shown.state === "running") this.follow(String(shown.id));
    this.subscribe(frame.seq ?? 0);
    this.settle();
    this.render();
    keep();
  }

  onNotice(frame: MessageNotice): void {
    if (frame.state === "running") this.follow(frame.id);
    this.conversation.notice(frame);
    if (frame.role === "assistant" && frame.state !== "running") this.settle();
    this.renderSoon();
  }

  onConversation(frame: ConversationFrame): void {
    if (frame.op === "part") this.onPart(frame);
    else if (frame.op === "waiting") this.onWaiting(frame);
    else if (this.conversation.event(frame)) this.read();
    this.askForStrangers();
    this.renderSoon();
  }

  /** A page of it could not be had: the server has no such conversation yet. */
  onUnknown(): void {
    this.loading = false;
    this.conversation.known = true;
    this.subscribe(0);
    this.render();
  }

  /** A message of it changed. */
  onMessage(message: Message): void {
    const asked = this.askedAt.get(message.id);
    if (asked !== undefined && (message.text || message.reasoning)) {
      this.askedAt.delete(message.id);
      this.firstTokens.set(message.id, Math.round(performance.now() - asked));
    }
    if (message.ended) this.renderSoon();
    else draw(this.drawing(message.id));
  }

  /** Whether this message belongs here. */
  has(message: Message): boolean {
    return message.request?.conversation === this.id || this.conversation.entry(message.id)?.role === "assistant";
  }

  private read(): void {
    this.loading = true;
    this.around.client.history(this.id, { limit: PAGE });
  }

  private readOlder(): void {
    const { older } = this.conversation;
    if (older === undefined || this.loading) return;
    this.loading = true;
    this.around.client.history(this.id, { limit: PAGE, before: older });
  }

  private subscribe(after: number): void {
    if (this.subscribed) return;
    this.subscribed = true;
    this.around.client.subscribe(this.id, after);
  }

  /** What another device asked for is followed from the start; one that failed and runs again, too. */
  private follow(id: string): void {
    const { client } = this.around;
    const message = client.session.messages.get(id);
    if (message?.ended) client.forget(id);
    if (!message || message.ended) client.follow(id);
  }

  /** It has no title and something was answered: have one made, once. */
  private settle(): void {
    const { conversation } = this;
    if (this.titled || conversation.title) return;
    const answered = conversation.turns([]).some(({ answer }) => answer?.state === "done");
    if (!answered || conversation.current !== undefined) return;
    this.titled = true;
    const model = this.around.model();
    this.around.client.conversation({ op: "title", conversation: this.id, ...(model && { model }) });
  }

  private askForStrangers(): void {
    const strangers = this.conversation.strangers(this.pending());
    if (strangers.length === 0) return;
    for (const id of strangers) this.conversation.waiting.set(id, "");
    this.around.client.conversation({ op: "waiting", conversation: this.id });
  }

  private onWaiting(frame: ConversationFrame): void {
    for (const { id, input } of frame.queue as { id: string; input: unknown }[]) {
      this.conversation.waiting.set(id, textOf(input));
    }
  }

  private onPart(frame: ConversationFrame): void {
    const ref = String(frame.ref);
    const data = (this.pieces.get(ref) ?? "") + String(frame.data);
    this.pieces.set(ref, data);
    if (frame.next != null) this.askForPart(ref, Number(frame.next));
    else this.conversation.fetched(ref, data);
  }

  private askForPart(ref: string, offset: number): void {
    this.around.client.conversation({ op: "part", conversation: this.id, ref, offset });
  }

  // --- drawing -------------------------------------------------------------------------------------------------------

  /** Asked for here and not an entry: sent, or waiting, or refused. */
  private pending(): Pending[] {
    return [...this.around.client.session.messages.values()].flatMap(({ id, request, state }) => {
      if (request?.conversation !== this.id || this.conversation.entry(id) || GONE.has(state)) return [];
      const { input, parent } = request;
      const text = input == null ? undefined : textOf(input);
      return [{ id, text, parent: parent ?? undefined, refused: state === "refused" }];
    });
  }

  private running(): string[] {
    return this.turns.flatMap(({ answer }) => (answer?.state === "running" ? [answer.id] : []));
  }

  renderSoon(): void {
    draw(this.render);
  }

  /** Draw all that stands in it; the views of what stood before stay. */
  readonly render = (): void => {
    this.turns = this.conversation.turns(this.pending());
    const shown = new Set(this.turns.map(({ id }) => id));
    for (const [id, view] of this.views) {
      if (shown.has(id)) continue;
      view.element.remove();
      this.views.delete(id);
    }
    const elements = this.turns.map((turn) => {
      const view = this.views.get(turn.id) ?? new TurnView(turn, this.actions);
      this.views.set(turn.id, view);
      this.show(turn);
      return view.element;
    });
    this.transcript.show(elements, this.conversation.older !== undefined);
    this.empty.hidden = this.turns.length > 0 || !this.conversation.known;
    setText(this.heading, this.title);
    this.transcript.name(this.title);
    for (const ref of this.conversation.missing()) {
      if (this.pieces.has(ref)) continue;
      this.pieces.set(ref, "");
      this.askForPart(ref, 0);
    }
    this.around.changed(this);
  };

  private readonly drawings = new Map<string, () => void>();

  private drawing(id: string): () => void {
    let drawing = this.drawings.get(id);
    if (!drawing) {
      drawing = () => {
        const turn = this.turns.find((each) => each.id === id);
        if (turn) this.show(turn);
        else this.render();
      };
      this.drawings.set(id, drawing);
    }
    return drawing;
  }

  private show(turn: Turn): void {
    const { client } = this.around;
    this.views.get(turn.id)?.show({
      conversation: this.conversation,
      turn,
      message: client.session.messages.get(turn.id),
      connected: client.status.phase === "open",
      firstTokenMs: this.firstTokens.get(turn.id),
    });
  }
}

/** Whether an error says that there is no such conversation. */
export function isUnknown(error: ErrorFrame["error"]): boolean {
  return error.code === "conversation_unknown";
}
