/** How a message stands with the server: accepted, refused, unknown, lost; and what heads say of what we have. */

import type { SessionEvent } from "./events.ts";
import type { Message } from "./message.ts";
import type { Outbox } from "./outbox.ts";
import type { Progress } from "./progress.ts";
import type { Accepted, ErrorBody, MessageHead } from "./types.ts";

/** Refusals that don't tell whether the same request, sent on an earlier connection, was started. */
const UNPROVEN = new Set(["store_unavailable", "draining", "internal", "rate_limited", "too_many_messages"]);
/** After so many heartbeats a request without any answer is sent again, under its id. */
const UNANSWERED_PONGS = 3;
/** How often a message that the server lost is asked for anew before it is given up as `lost`. */
const MAX_ASKED_ANEW = 3;

/** What the server says about where messages stand: accepted, resumed, refused, unknown. */
export class Standing {
  private readonly outbox: Outbox;
  private readonly progress: Progress;

  constructor(outbox: Outbox, progress: Progress) {
    this.outbox = outbox;
    this.progress = progress;
  }

  onAccepted(message: Message, frame: Accepted): SessionEvent[] {
    message.move("accept");
    message.pongMark = undefined;
    message.unansweredPongs = 0;
    message.serverState = frame.state;
    message.queuePosition = frame.queue_position ?? undefined;
    const events: SessionEvent[] = [{ type: "accepted", message, replay: frame.replay }];
    events.push(...this.sameOrAnew(message, frame));
    if (frame.state === "failed") {
      message.reopenedAt = -1;
      const earlier = message.earlierEnd;
      if (earlier && frame.seq === message.cursor) events.push(...this.progress.fail(message, earlier)); // Over, as it was.
    }
    return events;
  }

  /** Whether what the server tells the head of is what we followed; else its events begin anew at 1. */
  private sameOrAnew(message: Message, head: { seq: number; generation?: string | null }): SessionEvent[] {
    const known = message.made;
    message.made = head.generation ?? known;
    if (head.seq >= message.reopenedAt && (known === undefined || known === message.made)) return [];
    const told = message.cursor > 0;
    const events = this.beginAnew(message);
    return told ? [...events, ...this.progress.resumeNow(message, "lost")] : events;
  }

  /** The server lost what it had told: nothing of it stands. */
  private beginAnew(message: Message): SessionEvent[] {
    const told = message.cursor > 0;
    message.cursor = message.attempt = 0;
    message.reopenedAt = message.gapAt = -1;
    message.earlierEnd = message.parts = undefined;
    if (told) message.dropOutput();
    return told ? [{ type: "replaced", message }] : [];
  }

  /** An error about a message that has not ended. */
  onError(message: Message, re: string | undefined, error: ErrorBody): SessionEvent[] {
    if (message.state === "sending") return this.onSendError(message, re, error);
    if (error.code === "message_unknown" && re !== "send") return this.askAnew(message, error);
    if (re === "send" && message.cursor === 0) return this.progress.failHere(message, "refuse", error);
    if (!error.retryable) return this.progress.failHere(message, "lose", error);
    message.move("stall");
    return [{ type: "stalled", message, error, afterMs: error.retry_after_ms ?? undefined }];
  }

  private onSendError(message: Message, re: string | undefined, error: ErrorBody): SessionEvent[] {
    if (error.code === "message_unknown" && re !== "send") {
      const probed = message.probed; // It never arrived, so ask for it.
      message.probed = false;
      return probed ? this.askAgain(message) : [];
    }
    if (error.code === "draining" && this.outbox.draining) {
      message.transmitted = false;
      return [{ type: "error", message, re, error }];
    }
    if (message.uncertain && UNPROVEN.has(error.code)) {
      return [{ type: "stalled", message, error, afterMs: error.retry_after_ms ?? undefined }];
    }
    return this.progress.failHere(message, "refuse", error);
  }

  /** Pick a message up on a new connection; `head` is what `welcome` says of it, if it was asked about. */
  reattach(message: Message, head: MessageHead | undefined): SessionEvent[] {
    const events: SessionEvent[] = [];
    if (head) {
      message.move("accept");
      message.serverState = head.state;
      events.push({ type: "accepted", message, replay: true }, ...this.sameOrAnew(message, head));
    } else if (message.state === "sending") {
      message.probed = false;
      return this.askAgain(message);
    } else {
      this.outbox.resume(message);
    }
    message.reconnects++;
    if (message.cancelRequested) this.outbox.put({ type: "cancel", id: message.id });
    return events;
  }

  /** The server may not have got it: the same request under the same id, or nothing if it was cancelled. */
  private askAgain(message: Message): SessionEvent[] {
    if (!message.cancelRequested) {
      this.outbox.send(message);
      return [];
    }
    this.outbox.put({ type: "cancel", id: message.id }); // In case it is on its way to another node.
    message.move("cancel");
    return [{ type: "ended", message }];
  }

  /** The server lost a message that it had accepted: ask for it again, if it was this client that asked. */
  private askAnew(message: Message, error: ErrorBody): SessionEvent[] {
    if (message.request === undefined || message.askedAnew >= MAX_ASKED_ANEW) {
      return this.progress.failHere(message, "lose", error);
    }
    if (message.cancelRequested) return this.askAgain(message);
    message.askedAnew++;
    message.resyncs++;
    message.move("ask_anew");
    message.transmitted = message.probed = false;
    message.pongMark = message.made = undefined;
    const events = this.beginAnew(message);
    this.outbox.send(message);
    return [...events, { type: "resyncing", message, reason: "lost" }];
  }

  /**
   * Whether the server's head and our cursor tell that something got lost. A pong overtakes data, so being behind is
   * normal once; being behind at the same place twice is not.
   */
  compareHead(message: Message, head: number | undefined): SessionEvent[] {
    if (message.state === "sending" && head === undefined) return this.countUnanswered(message);
    const answered = message.state === "following";
    if (answered) {
      if (head === undefined) return this.progress.resumeNow(message, "missing");
      if (head <= message.cursor) {
        message.pongMark = undefined;
        return [];
      }
    }
    const before = message.pongMark;
    message.pongMark = { cursor: message.cursor, answered };
    if (before?.cursor !== message.cursor || before.answered !== answered) return [];
    return this.progress.resumeNow(message, answered ? "behind" : "unanswered");
  }

  /** A request without an answer over several pongs is asked again; if it is only slow, that attaches to it. */
  private countUnanswered(message: Message): SessionEvent[] {
    message.unansweredPongs++;
    if (!message.transmitted || message.unansweredPongs < UNANSWERED_PONGS) return [];
    message.unansweredPongs = 0;
    message.resyncs++;
    this.outbox.send(message);
    return [{ type: "resyncing", message, reason: "unanswered" }];
  }
}
