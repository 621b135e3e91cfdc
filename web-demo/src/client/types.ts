/** Shorter names for what travels. `wire.ts` is generated from the frame models, and so is the source of all of it. */

import type { Attempt, Cancelled, Delta, Done, Failed, Send } from "./wire.ts";

export type * from "./wire.ts";

/** What is asked for. The id is chosen by the client; the same id never generates twice. */
export type SendRequest = Omit<Send, "type" | "retry_of" | "after">;

/** How a message ends: whole, failed or stopped. */
export type EndFrame = Done | Failed | Cancelled;
/** The frames that stand in a message's journal. */
export type JournaledFrame = Attempt | Delta | EndFrame;

/** One piece of a tool call, in the chat-completions format; pieces of one `index` belong together. */
export interface ToolCall {
  /** Which call of the message it belongs to, from 0. */
  index?: number;
  /** The call's id, which its result repeats (`tool_call_id`). */
  id?: string;
  /** `function`. */
  type?: string;
  /** Name, and the arguments as JSON that grows. */
  function?: { name?: string; arguments?: string };
}
