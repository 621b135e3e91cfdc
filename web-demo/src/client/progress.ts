/** What a message's own frames do to it: output that continues the cursor, gaps, and the ends with their hashes. */

import type { ResyncReason, SessionEvent } from "./events.ts";
import { MAX_GAPS, MAX_MISMATCHES, type Message, type Trigger } from "./message.ts";
import type { Outbox } from "./outbox.ts";
import type { Attempt, Cancelled, Delta, Done, EndFrame, ErrorBody, Failed, Snapshot } from "./types.ts";

/** A takeover continues the journal at least so many numbers ahead; a smaller hole is never a jump. */
const TAKEOVER_JUMP = 2 ** 20;

export class Progress {
  private readonly outbox: Outbox;

  constructor(outbox: Outbox) {
    this.outbox = outbox;
  }

  onDelta(message: Message, frame: Delta): SessionEvent[] {
    if (frame.after !== message.cursor || !message.move("data")) {
      return frame.seq <= message.cursor ? [] : this.resync(message, "gap");
    }
    message.cursor = frame.seq;
    message.add(frame);
    return [{ type: "output", message, frame }];
  }

  onAttempt(message: Message, frame: Attempt): SessionEvent[] {
    if (frame.seq <= message.cursor) return [];
    if (frame.mode !== "continue") message.dropOutput();
    else if (this.isHole(message, frame)) return this.resync(message, "gap");
    message.move("data");
    message.cursor = frame.seq;
    message.attempt = frame.attempt;
    message.attempts.push(frame);
    message.serverState = "streaming";
    return [{ type: "attempt", message, info: frame }];
  }

  onSnapshot(message: Message, frame: Snapshot): SessionEvent[] {
    if (frame.part === 1) {
      message.move("data");
      message.parts = [];
    }
    const parts = message.parts;
    if (!parts || frame.part !== parts.length + 1 || (parts[0] ?? frame).seq !== frame.seq) {
      message.parts = undefined;
      return this.resync(message, "snapshot");
    }
    parts.push(frame);
    if (!frame.last) return [];
    message.replace(parts);
    return [{ type: "replaced", message }];
  }

  /** Whether events are missing before `frame`; without its `after`, a jump is believed once it was asked about. */
  private isHole(message: Message, frame: Attempt | EndFrame, verified = false): boolean {
    if (frame.after != null) return frame.after !== message.cursor;
    const missing = frame.seq - message.cursor - 1;
    if (missing <= 0) return false;
    const before = message.askedAbout;
    message.askedAbout = { cursor: message.cursor, seq: frame.seq };
    const asked = before?.cursor === message.cursor && before.seq === frame.seq && message.state === "following";
    return !(asked && (verified || missing >= TAKEOVER_JUMP));
  }

  /** Ask for everything after the cursor, once until it is answered. */
  private resync(message: Message, reason: ResyncReason): SessionEvent[] {
    if (message.gapAt !== message.cursor) {
      message.gapAt = message.cursor;
      message.gaps = 0;
    }
    if (!message.move("gap")) return [];
    if (++message.gaps > MAX_GAPS) return this.breakOff(message, "the server keeps leaving out events");
    message.resyncs++;
    this.outbox.resume(message);
    return [{ type: "resyncing", message, reason }];
  }

  /** The text is not what its hash says: drop it and ask for everything. */
  private startOver(message: Message): SessionEvent[] {
    if (++message.mismatches > MAX_MISMATCHES) return this.breakOff(message, "the text does not match its hash");
    message.dropOutput();
    message.cursor = 0;
    return [...this.resumeNow(message, "mismatch"), { type: "replaced", message }];
  }

  private breakOff(message: Message, why: string): SessionEvent[] {
    this.outbox.put({ type: "detach", id: message.id });
    const error: ErrorBody = {
      code: "text_unverified",
      class: "permanent",
      status: 502,
      message: why,
      retryable: false,
    };
    return this.failHere(message, "break", error);
  }

  onVerifiedEnd(message: Message, frame: Done | Cancelled): SessionEvent[] {
    if (frame.seq <= message.reopenedAt) return [];
    const verified = message.matches(frame.text_bytes, frame.text_sha256);
    if (this.isHole(message, frame, verified)) return this.resync(message, "gap");
    if (verified) return this.end(message, frame.type === "done" ? "done" : "cancel", frame);
    return message.state === "resyncing" ? [] : this.startOver(message);
  }

  onFailed(message: Message, frame: Failed): SessionEvent[] {
    if (frame.seq <= message.reopenedAt) return [];
    return this.isHole(message, frame) ? this.resync(message, "gap") : this.fail(message, frame);
  }

  /** It failed as `frame` tells. */
  fail(message: Message, frame: EndFrame & { type: "failed" }): SessionEvent[] {
    message.error = frame.error;
    message.partial = frame.partial ?? false;
    return this.end(message, "fail", frame);
  }

  private end(message: Message, trigger: Trigger, frame: EndFrame): SessionEvent[] {
    message.move(trigger);
    message.cursor = frame.seq;
    message.serverState = frame.type;
    message.usage = frame.usage;
    message.end = frame;
    message.parts = undefined;
    return [{ type: "ended", message }];
  }

  /** It ends by our own finding, or by a frame that stands in no journal. */
  failHere(message: Message, trigger: Trigger, error: ErrorBody): SessionEvent[] {
    message.move(trigger);
    message.error = error;
    message.parts = undefined;
    return [{ type: "ended", message }];
  }

  /** Ask for everything after the cursor, whatever is under way. */
  resumeNow(message: Message, reason: ResyncReason): SessionEvent[] {
    message.pongMark = undefined;
    if (!message.move("resume") && !message.move("gap")) return [];
    message.resyncs++;
    this.outbox.resume(message);
    return [{ type: "resyncing", message, reason }];
  }
}
