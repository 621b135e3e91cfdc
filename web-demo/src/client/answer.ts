/** One message as a caller awaits it: its pieces as they come, its acceptance, its end. */

import { ClientClosed, ConnectionFailed, failureOf } from "./errors.ts";
import type { Message } from "./message.ts";
import type { ClientEvent, Status } from "./options.ts";
import type { ErrorBody } from "./types.ts";

/** What came since the piece before: everything that arrived while the reader was busy, in one. */
export interface Piece {
  /** New text; append it, unless `replaces`. */
  text: string;
  /** New reasoning, likewise. */
  reasoning: string;
  /** Forget what was shown: an attempt started over or a snapshot came, and this is all that stands. */
  replaces: boolean;
}

/** What an answer needs of its client. */
export interface Follower {
  readonly status: Status;
  readonly started: boolean;
  readonly lastError: ErrorBody | undefined;
  cancel(id: string): void;
  on(listener: (event: ClientEvent) => void): () => void;
}

/** Made by `Client.ask` and `Client.attach`. */
export class Answer implements AsyncIterable<Piece> {
  /** Text, reasoning, tool calls, state, usage … as they stand now. */
  readonly message: Message;
  private readonly client: Follower;

  constructor(client: Follower, message: Message) {
    this.client = client;
    this.message = message;
  }

  /** The id of the message. */
  get id(): string {
    return this.message.id;
  }

  /** Resolves once the server has admitted the message. Rejects with `MessageRefused`, `ConnectionFailed`. */
  async accepted(): Promise<Message> {
    while (this.message.state === "sending") await this.changed();
    return this.checked();
  }

  /** Resolves at the end: done, or cancelled. Rejects with a `MessageError` if it ended otherwise. */
  async done(): Promise<Message> {
    while (!this.message.ended) await this.changed();
    return this.checked();
  }

  /** Stop generating, and wait for the receipt. If the end won the race, that is the receipt. */
  async cancel(): Promise<Message> {
    this.client.cancel(this.id);
    while (!this.message.ended) await this.changed();
    return this.message;
  }

  /**
   * Pieces of output as they come; every iteration starts from the beginning of what stands. Throws a `MessageError`
   * at the end if the message did not end well, so that nobody takes a part for the whole.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    const { message } = this;
    let { generation } = message;
    let shown = 0;
    let thought = 0;
    let replaces = false;
    for (;;) {
      if (message.generation !== generation) {
        replaces ||= shown > 0 || thought > 0;
        generation = message.generation;
        shown = thought = 0;
      }
      const text = message.text.slice(shown);
      const reasoning = message.reasoning.slice(thought);
      if (text || reasoning || replaces) {
        shown += text.length;
        thought += reasoning.length;
        yield { text, reasoning, replaces };
        replaces = false;
      } else if (message.ended) {
        this.checked();
        return;
      } else {
        await this.changed();
      }
    }
  }

  private checked(): Message {
    const failure = failureOf(this.message);
    if (failure) throw failure;
    return this.message;
  }

  /** Resolves when anything happens to the message. Rejects when it is no longer followed here. */
  changed(): Promise<void> {
    const { client, message } = this;
    return new Promise((resolve, reject) => {
      const look = (): boolean => {
        if (message.state === "detached") {
          reject(new ClientClosed({ code: "detached", message: "the message is no longer followed; it goes on" }));
        } else if (client.status.phase === "stopped") {
          reject(new ConnectionFailed(client.status.closeCode, client.lastError));
        } else if (client.status.phase === "closed" && client.started) {
          reject(new ClientClosed({ code: "client_closed", message: "the client was closed; the message goes on" }));
        } else {
          return false;
        }
        return true;
      };
      if (look()) return;
      const stop = client.on((event) => {
        if (event.type === "status" ? !look() : !("message" in event && event.message === message)) return;
        stop();
        resolve();
      });
    });
  }
}
