/**
 * `useChat` of the AI SDK over Tidewire: `useChat({ transport: new TidewireChatTransport({ url }) })`.
 *
 * A message of Tidewire becomes a stream of the SDK's chunks. Losses of the connection, of the server's node or of the
 * page are mended below that stream, so the SDK never sees them. What it can't express is text that is taken back, when
 * another model starts over in mid-answer: that step ends with a mark, which says so in words to who renders all parts,
 * and `visibleParts` leaves both out.
 */

import type { ChatTransport, FinishReason, UIMessage, UIMessageChunk } from "ai";
import { KeptChat, type Wish } from "./ai-kept.ts";
import { chatMessages } from "./ai-messages.ts";
import { Answer } from "./answer.ts";
import { Conversations } from "./conversations.ts";
import { failureOf, MessageRefused } from "./errors.ts";
import { newId } from "./ids.ts";
import type { Message } from "./message.ts";
import { Client, type ClientOptions } from "./socket.ts";
import type { ChatMessage, SendRequest, ToolCall } from "./types.ts";

export { chatMessages, uiMessages, visibleParts } from "./ai-messages.ts";

/** What a request may carry beside its messages. */
export type RequestFields = Omit<SendRequest, "id" | "messages">;

/** What a transport may be told beside where its server is. */
export interface TransportOptions {
  /**
   * The server keeps the chats: only what is new is sent, every device of the user sees them, and `loadMessages` brings
   * them back. The id of a chat is that of its conversation, unless a function here gives another.
   */
  conversations?: boolean | ((chatId: string) => string);
  /** What every request carries: `model`, `tools`, `temperature`, … */
  request?: RequestFields;
  /** The messages of a request, where the usual translation won't do. */
  toMessages?: (messages: UIMessage[]) => ChatMessage[];
  /** What is put into the finished message's `metadata`, for instance usage and cost. */
  messageMetadata?: (message: Message) => unknown;
  /** What stands between a text that was taken back and the one that replaces it; only `visibleParts` shows neither. */
  restartText?: string;
}

/** What a transport is made of: a client, which may serve other parts of the page too, or what to make one of. */
export type TidewireChatTransportOptions = TransportOptions & ({ client: Client } | ClientOptions);

/** The field of a request's `metadata` that names its chat, so that a reload finds the open message of a chat. */
const CHAT = "chat";
const WITHDRAWN = "withdrawn: another attempt starts over";
const RESTART_TEXT = "\n\n[The answer starts over.]\n\n";

const FINISH_REASONS: Record<string, FinishReason> = {
  stop: "stop",
  length: "length",
  tool_calls: "tool-calls",
  content_filter: "content-filter",
};

/** The transport for `useChat` and `Chat`, of any number of chats. It starts its client with the first request. */
export class TidewireChatTransport<UI_MESSAGE extends UIMessage = UIMessage> implements ChatTransport<UI_MESSAGE> {
  /** A resumed stream tells the whole answer from its beginning, so nothing that is shown already is doubled. */
  readonly resumeStreamIsReplay = true;
  /** The client under it: its status, its events, `setToken`, `close`. */
  readonly client: Client;
  private readonly options: TransportOptions;
  private readonly kept = new Map<string, KeptChat>();
  private readonly conversations: Conversations | undefined;
  /** How often each chat was resumed: an abort that makes way for the next resume is no wish to stop. */
  private readonly resumes = new Map<string, number>();

  constructor(options: TidewireChatTransportOptions) {
    this.options = options;
    this.client = "client" in options ? options.client : new Client({ ...tabStorage(), ...options });
    this.conversations = options.conversations ? new Conversations(this.client) : undefined;
  }

  /**
   * A chat that the server keeps, for `useChat({ messages })`; with `resume` an answer that still runs follows by itself.
   * Throws `TypeError` unless `conversations` is on.
   */
  async loadMessages(chatId: string): Promise<UI_MESSAGE[]> {
    this.start();
    const kept = this.keptChat(chatId);
    if (!kept) throw new TypeError("give `conversations: true`: the server keeps no chats otherwise");
    return kept.messages<UI_MESSAGE>();
  }

  /**
   * Called by the SDK to ask; the stream follows the answer until its end, over any number of connections. It fails
   * with a `MessageError` if the answer does. Rejects with a `TidewireError` if the place of the question in a kept
   * chat can't be found.
   */
  async sendMessages(
    options: Parameters<ChatTransport<UI_MESSAGE>["sendMessages"]>[0],
  ): Promise<ReadableStream<UIMessageChunk>> {
    this.start();
    const { chatId, messages, abortSignal, body, metadata } = options;
    const { request } = this.options;
    const kept = this.keptChat(chatId);
    const what = kept ? await kept.place(options as Wish) : { messages: this.translate(messages) };
    const answer = this.client.ask(
      {
        ...request,
        ...(body as RequestFields | undefined),
        ...what,
        id: newId(),
        metadata: { ...request?.metadata, ...(metadata as object | undefined), [CHAT]: chatId },
      },
      { signal: abortSignal },
    );
    if (kept) {
      answer.accepted().then(
        () => kept.onAccepted(messages),
        (error) => error instanceof MessageRefused && kept.onRefused(messages),
      );
    }
    // After a tool's result the SDK goes on with the assistant's message that it has.
    const goesOn = messages.at(-1)?.role === "assistant";
    return this.streamOf(answer, goesOn ? undefined : answer.id);
  }

  /**
   * Called by the SDK with `resume`: the running answer of a chat from its beginning, or null if none runs. Rejects
   * with a `TidewireError` if a kept chat can't be read.
   */
  async reconnectToStream(
    options: Parameters<ChatTransport<UI_MESSAGE>["reconnectToStream"]>[0],
  ): Promise<ReadableStream<UIMessageChunk> | null> {
    this.start();
    const { chatId, abortSignal } = options;
    const resume = (this.resumes.get(chatId) ?? 0) + 1;
    this.resumes.set(chatId, resume);
    const message = this.openMessage(chatId) ?? (await this.runningElsewhere(chatId));
    if (!message) return null;
    abortSignal?.addEventListener("abort", () => {
      // The SDK aborts a resume also when another one takes its place, which it starts in the same turn.
      setTimeout(() => {
        if (this.resumes.get(chatId) === resume) this.client.cancel(message.id);
      });
    });
    return this.streamOf(new Answer(this.client, message), message.id);
  }

  private start(): void {
    if (this.client.status.phase === "closed") this.client.start();
  }

  private get translate(): (messages: UIMessage[]) => ChatMessage[] {
    return this.options.toMessages ?? chatMessages;
  }

  private conversationOf(chatId: string): string {
    const { conversations } = this.options;
    return typeof conversations === "function" ? conversations(chatId) : chatId;
  }

  private keptChat(chatId: string): KeptChat | undefined {
    if (!this.conversations) return undefined;
    let kept = this.kept.get(chatId);
    if (!kept) {
      kept = new KeptChat(this.conversations, this.conversationOf(chatId), this.translate);
      this.kept.set(chatId, kept);
    }
    return kept;
  }

  /** The answer that runs in a kept chat, whichever device asked for it. */
  private async runningElsewhere(chatId: string): Promise<Message | undefined> {
    const current = await this.keptChat(chatId)?.running();
    // A turn ends a moment after its message; what ended here before is shown already.
    if (!current || this.client.session.messages.get(current)?.ended) return undefined;
    return this.client.attach(current).message;
  }

  /** The newest message of a chat that has not ended, also one that an earlier life of the page asked for. */
  private openMessage(chatId: string): Message | undefined {
    return this.client.session.unfinished.findLast((message) => message.request?.metadata?.[CHAT] === chatId);
  }

  private streamOf(answer: Answer, messageId: string | undefined): ReadableStream<UIMessageChunk> {
    const chunks = new Chunks(answer, messageId, this.options).read();
    return new ReadableStream<UIMessageChunk>(
      {
        // Chunks are made when they are read: nothing piles up, and an error never overtakes what came before it.
        async pull(controller) {
          const { value, done } = await chunks.next();
          if (done) controller.close();
          else controller.enqueue(value);
        },
        async cancel() {
          await chunks.return();
        },
      },
      { highWaterMark: 0 },
    );
  }
}

/** The storage of the browser's tab, where there is one that is not blocked. */
function tabStorage(): Pick<ClientOptions, "storage"> {
  try {
    return { storage: sessionStorage };
  } catch {
    return {};
  }
}

/** Turns what stands of a message, as it grows, into chunks. */
class Chunks {
  private readonly answer: Answer;
  private readonly messageId: string | undefined;
  private readonly options: TransportOptions;
  private generation: number;
  private parts = 0;
  private open: { kind: "text" | "reasoning"; id: string } | undefined;
  private readonly told = { text: 0, reasoning: 0 };
  /** What was told of each call. */
  private readonly calls = new Map<string, { name: string; characters: number }>();

  constructor(answer: Answer, messageId: string | undefined, options: TransportOptions) {
    this.answer = answer;
    this.messageId = messageId;
    this.options = options;
    this.generation = answer.message.generation;
  }

  /** Throws a `MessageError` at the end if the message did not end well; the SDK hands it to the application. */
  async *read(): AsyncGenerator<UIMessageChunk, void, undefined> {
    const { answer } = this;
    const { message } = answer;
    yield { type: "start", ...(this.messageId !== undefined && { messageId: this.messageId }) };
    yield { type: "start-step" };
    for (;;) {
      if (message.generation !== this.generation) yield* this.withdraw();
      const chunks = [...this.more(message)];
      yield* chunks;
      if (chunks.length > 0) continue;
      if (message.ended) break;
      await answer.changed();
    }
    yield* this.close();
    yield* this.finish(message);
  }

  /** What came since the last look. */
  private *more(message: Message): Generator<UIMessageChunk> {
    yield* this.grow("reasoning", message.reasoning);
    yield* this.grow("text", message.text);
    for (const call of message.toolCalls) yield* this.growCall(call);
  }

  private *grow(kind: "text" | "reasoning", whole: string): Generator<UIMessageChunk> {
    const delta = whole.slice(this.told[kind]);
    if (!delta) return;
    if (this.open?.kind !== kind) {
      yield* this.close();
      this.open = { kind, id: `${kind}-${++this.parts}` };
      yield { type: `${kind}-start`, id: this.open.id };
    }
    this.told[kind] += delta.length;
    yield { type: `${kind}-delta`, id: this.open.id, delta };
  }

  private *growCall(call: ToolCall): Generator<UIMessageChunk> {
    const { id: toolCallId, function: called } = call;
    if (!toolCallId || !called?.name) return;
    const written = called.arguments ?? "";
    let told = this.calls.get(toolCallId);
    if (!told) {
      told = { name: called.name, characters: 0 };
      this.calls.set(toolCallId, told);
      yield* this.close();
      yield { type: "tool-input-start", toolCallId, toolName: called.name };
    }
    const inputTextDelta = written.slice(told.characters);
    told.characters = written.length;
    if (inputTextDelta) yield { type: "tool-input-delta", toolCallId, inputTextDelta };
  }

  private *close(): Generator<UIMessageChunk> {
    if (!this.open) return;
    const { kind, id } = this.open;
    this.open = undefined;
    yield { type: `${kind}-end`, id };
  }

  /** Mark the step that was told so far as taken back, and begin another. */
  private *withdraw(): Generator<UIMessageChunk> {
    this.generation = this.answer.message.generation;
    if (this.told.text + this.told.reasoning + this.calls.size === 0) return;
    yield* this.close();
    for (const [toolCallId, { name }] of this.calls) {
      yield { type: "tool-input-error", toolCallId, toolName: name, input: undefined, errorText: WITHDRAWN };
    }
    const mark = { id: `text-${++this.parts}`, providerMetadata: { tidewire: { withdrawn: true } } };
    yield { type: "text-start", ...mark };
    yield { type: "text-delta", ...mark, delta: this.options.restartText ?? RESTART_TEXT };
    yield { type: "text-end", ...mark };
    yield { type: "finish-step" };
    yield { type: "start-step" };
    this.calls.clear();
    this.told.text = this.told.reasoning = 0;
  }

  private *finish(message: Message): Generator<UIMessageChunk> {
    const failure = failureOf(message);
    if (failure) throw failure;
    if (message.state === "cancelled") {
      yield { type: "abort" };
      return;
    }
    for (const call of message.toolCalls) yield* available(call);
    yield { type: "finish-step" };
    const reason = message.end?.type === "done" ? message.end.finish_reason : "";
    const messageMetadata = this.options.messageMetadata?.(message);
    yield {
      type: "finish",
      finishReason: FINISH_REASONS[reason] ?? "other",
      ...(messageMetadata !== undefined && { messageMetadata }),
    };
  }
}

function* available(call: ToolCall): Generator<UIMessageChunk> {
  const { id: toolCallId = "", function: called } = call;
  const toolName = called?.name ?? "";
  try {
    yield { type: "tool-input-available", toolCallId, toolName, input: JSON.parse(called?.arguments || "{}") };
  } catch {
    const errorText = "the model wrote arguments that are not JSON";
    yield { type: "tool-input-error", toolCallId, toolName, input: called?.arguments, errorText };
  }
}
