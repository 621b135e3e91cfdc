/**
 * Everything that is thrown, or rejects, about a message or the connection. `code` is one of the protocol's codes
 * (`ErrorCode`), or one of the client's own (`ClientErrorCode`).
 */

import type { Message } from "./message.ts";
import type { ErrorBody } from "./types.ts";

/** What no server says: the client finds it out by itself. */
export type ClientErrorCode =
  | "client_closed"
  | "connection_refused"
  | "detached"
  | "text_unverified"
  | "token_unavailable";

/** The base of all errors of this package. */
export class TidewireError extends Error {
  override name = "TidewireError";
  /** An `ErrorCode` or a `ClientErrorCode`; a later server may have more. */
  readonly code: string;
  /** Whether asking again may help. */
  readonly retryable: boolean;
  /** When, in milliseconds, if the server said so. */
  readonly retryAfterMs: number | undefined;
  /** What the code's row in the protocol's table promises, if anything. */
  readonly details: Record<string, unknown> | undefined;

  constructor(error: Pick<ErrorBody, "code" | "message"> & Partial<ErrorBody>) {
    super(error.message);
    this.code = error.code;
    this.retryable = error.retryable ?? false;
    this.retryAfterMs = error.retry_after_ms ?? undefined;
    this.details = error.details ?? undefined;
  }
}

/** The server closed with a code that reconnecting would not mend; a new token may. */
export class ConnectionFailed extends TidewireError {
  override name = "ConnectionFailed";
  /** The code of the WebSocket's close frame, if one came. */
  readonly closeCode: number | undefined;

  constructor(closeCode: number | undefined, error?: ErrorBody) {
    super(error ?? { code: "connection_refused", message: `the server closed the connection with code ${closeCode}` });
    this.closeCode = closeCode;
  }
}

/** The client was closed, or the message detached, while somebody waited. The message itself goes on. */
export class ClientClosed extends TidewireError {
  override name = "ClientClosed";
}

/** A message did not come to a good end. `tidewireMessage` holds what stands of it. */
export class MessageError extends TidewireError {
  override name = "MessageError";
  /** The message, with what stands of it. */
  readonly tidewireMessage: Message;

  constructor(message: Message) {
    super(message.error ?? { code: "internal", message: "no reason was given" });
    this.tidewireMessage = message;
  }
}

/** Never started; nothing is billed. The same id may be asked again (`Client.retry`). */
export class MessageRefused extends MessageError {
  override name = "MessageRefused";
}

/** Started, and ended without a whole answer; `tidewireMessage.partial` says whether text stands. */
export class MessageFailed extends MessageError {
  override name = "MessageFailed";
}

/** The server does not know the message (any more), or may not show it. */
export class MessageLost extends MessageError {
  override name = "MessageLost";
}

/** The text could not be verified, however often it was asked for. */
export class MessageBroken extends MessageError {
  override name = "MessageBroken";
}

/** What to throw about a message; undefined if it ended well (done, cancelled) or has not ended. */
export function failureOf(message: Message): MessageError | undefined {
  switch (message.state) {
    case "refused":
      return new MessageRefused(message);
    case "failed":
      return new MessageFailed(message);
    case "lost":
      return new MessageLost(message);
    case "broken":
      return new MessageBroken(message);
    default:
      return undefined;
  }
}
