/** What is to go out on the present connection, and whether there is one. */

import type { Message } from "./message.ts";
import type { ClientFrame } from "./types.ts";

export class Outbox {
  /** Whether `welcome` arrived on the present connection. */
  open = false;
  /** The server said `goaway`: what is asked for now waits for the next connection. */
  draining = false;
  private queue: ClientFrame[] = [];

  /** Queue a frame of this connection; without one there is nobody to tell. */
  put(frame: ClientFrame): void {
    if (this.open) this.queue.push(frame);
  }

  /** Ask for a message; or again, with what a retry reopens. */
  send(message: Message): void {
    if (this.draining || !message.request) return;
    const reopen = message.reopenedAt >= 0 && { retry_of: message.reopenedAt, after: message.cursor };
    this.put({ type: "send", ...message.request, ...reopen });
  }

  /** Ask for everything after the message's cursor. */
  resume(message: Message): void {
    message.pongMark = undefined;
    this.put({ type: "resume", id: message.id, after: message.cursor });
  }

  /** Take back what has not gone out yet. */
  withdraw(which: (frame: ClientFrame) => boolean): void {
    this.queue = this.queue.filter((frame) => !which(frame));
  }

  /** A connection was made: it starts with nothing queued. */
  begin(): void {
    this.open = true;
    this.draining = false;
    this.queue = [];
  }

  /** The connection is gone, and with it what had not gone out. */
  end(): void {
    this.open = false;
    this.queue = [];
  }

  /** Everything queued, once. */
  take(): ClientFrame[] {
    if (!this.open) return [];
    const frames = this.queue;
    this.queue = [];
    return frames;
  }
}
