/** Questions and answers kept in this browser: one storage entry each, so that two tabs don't overwrite each other. */

import type { ChatMessage, ErrorBody, Message } from "../client/index.ts";

const PREFIX = "tidewire.turn.";
/** How much of a chat is sent along with a question, in characters: the demo's local model has a small context. */
const CONTEXT_CHARACTERS = 6000;

/** One question and its answer. `id` is the message id, so turns sort by time. */
export interface Turn {
  id: string;
  chat: string;
  /** The first turn of those that were asked while others were still being answered; shown side by side. */
  group: string;
  question: string;
  model?: string;
  /** The server has the question: it may be followed, and need not be sent again. */
  acknowledged: boolean;
  firstTokenMs?: number;
  answer?: Answer;
}

/** How it ended. */
export interface Answer {
  state: "done" | "failed" | "cancelled";
  text: string;
  reasoning: string;
  target?: string;
  model?: string;
  attempts?: number;
  outputTokens?: number;
  totalTokens?: number;
  seq?: number;
  prompt?: { name: string; version: string };
  costUsd?: number;
  finishReason?: string;
  /** Why the target is not the first of its route; empty if the server did not say. */
  switched?: string;
  resumes: number;
  error?: ErrorBody;
}

export function answerOf(message: Message): Answer {
  const end = message.end;
  const done = end?.type === "done" ? end : undefined;
  const attempt = message.attempts.at(-1);
  const target = done?.target ?? attempt?.target;
  const model = done?.model ?? attempt?.model;
  const attempts = done?.attempts ?? message.attempt;
  return {
    state: message.state === "done" || message.state === "cancelled" ? message.state : "failed",
    text: message.text,
    reasoning: message.reasoning,
    resumes: message.reconnects + message.resyncs,
    ...(target ? { target } : {}),
    ...(model ? { model } : {}),
    ...(attempts ? { attempts } : {}),
    ...(end ? { outputTokens: end.usage.output_tokens, totalTokens: end.usage.total_tokens } : {}),
    ...(message.cursor > 0 ? { seq: message.cursor } : {}),
    ...(done?.prompt ? { prompt: done.prompt } : {}),
    ...(done?.cost_usd == null ? {} : { costUsd: done.cost_usd }),
    ...(done ? { finishReason: done.finish_reason } : {}),
    ...(attempt && attempt.attempt > 1 ? { switched: String(attempt.reason?.code ?? "") } : {}),
    ...(message.error ? { error: message.error } : {}),
  };
}

export class TurnStore {
  private readonly storage: Storage | undefined;

  constructor(storage: Storage | undefined) {
    this.storage = storage;
  }

  /** Every turn, oldest first. */
  load(): Turn[] {
    const keys = this.storage ? Object.keys(this.storage).filter((key) => key.startsWith(PREFIX)) : [];
    return keys.sort().flatMap((key) => parse(this.storage?.getItem(key) ?? null) ?? []);
  }

  save(turn: Turn): void {
    try {
      this.storage?.setItem(PREFIX + turn.id, JSON.stringify(turn));
    } catch {
      // Full or blocked storage: the chat works, it is only forgotten on reload.
    }
  }

  remove(turn: Turn): void {
    this.storage?.removeItem(PREFIX + turn.id);
  }

  /** The turn another tab wrote, if `event` is about one. */
  static changed(event: StorageEvent): Turn | undefined {
    return event.key?.startsWith(PREFIX) ? parse(event.newValue) : undefined;
  }
}

function parse(text: string | null): Turn | undefined {
  try {
    const turn = JSON.parse(text ?? "null");
    return typeof turn?.id === "string" && typeof turn.question === "string" ? turn : undefined;
  } catch {
    return undefined;
  }
}

/** The messages to send for a question: as much of the chat as fits, newest kept, then the question. */
export function context(earlier: Turn[], question: string): ChatMessage[] {
  const messages: ChatMessage[] = [{ role: "user", content: question }];
  let room = CONTEXT_CHARACTERS - question.length;
  for (const turn of [...earlier].reverse()) {
    const text = turn.answer?.text ?? "";
    if (!text || turn.answer?.state === "failed") continue;
    room -= turn.question.length + text.length;
    if (room < 0) break;
    messages.unshift({ role: "user", content: turn.question }, { role: "assistant", content: text });
  }
  return messages;
}
