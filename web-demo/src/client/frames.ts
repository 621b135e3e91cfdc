/** The frames of protocol version 1, as they travel. `protocol/frames.py` is the source. */

export const SUBPROTOCOL_JSON = "tidewire.v1.json";
export const SUBPROTOCOL_MSGPACK = "tidewire.v1.msgpack";
export const MAX_RESUMES_PER_HELLO = 256;

export type State = "admitting" | "queued" | "streaming" | "done" | "failed" | "cancelled";

export interface ErrorBody {
  code: string;
  class: "temporary" | "permanent";
  status: number;
  message: string;
  retryable: boolean;
  retry_after_ms?: number | null;
  details?: Record<string, unknown> | null;
}

export interface Usage {
  input_tokens: number;
  output_tokens: number;
  total_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
}

export interface Limit {
  name: string;
  limit: number;
  remaining: number;
  reset_seconds: number;
}

export interface MessageHead {
  id: string;
  state: string;
  seq: number;
  conversation?: string | null;
}

/** One piece of a tool call, in the chat-completions format; pieces of one `index` belong together. */
export interface ToolCall {
  index?: number;
  id?: string;
  type?: string;
  function?: { name?: string; arguments?: string };
}

// --- client to server ------------------------------------------------------------------------------------------------

export interface ChatMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | Record<string, unknown>[] | null;
  tool_calls?: Record<string, unknown>[];
  tool_call_id?: string;
  name?: string;
}

/** What is asked for. The id is chosen by the client; the same id never generates twice. */
export interface SendRequest {
  id: string;
  model?: string;
  messages?: ChatMessage[];
  conversation?: string;
  input?: string | Record<string, unknown>[] | ChatMessage | ChatMessage[];
  prompt?: { name: string; version?: string; variables?: Record<string, unknown> };
  max_output_tokens?: number;
  temperature?: number;
  top_p?: number;
  stop?: string | string[];
  seed?: number;
  tools?: Record<string, unknown>[];
  tool_choice?: string | Record<string, unknown>;
  response_format?: Record<string, unknown>;
  parent?: string;
  metadata?: Record<string, unknown>;
  on_busy?: "queue" | "reject" | "interrupt" | "rollback";
}

export interface HelloFrame {
  type: "hello";
  token?: string;
  client?: { name: string; version: string };
  resume?: { id: string; after: number }[];
}

export type ClientFrame =
  | HelloFrame
  | (SendRequest & { type: "send"; retry_of?: number; after?: number })
  | { type: "resume"; id: string; after: number }
  | { type: "detach"; id: string }
  | { type: "cancel"; id: string }
  | { type: "auth"; token: string }
  | { type: "subscribe" | "unsubscribe"; conversation: string }
  | { type: "history"; conversation: string; before?: string; limit?: number }
  | { type: "ping"; nonce: string | number };

// --- server to client ------------------------------------------------------------------------------------------------

export interface WelcomeFrame {
  type: "welcome";
  session: string;
  user: string;
  tier: string;
  heartbeat_seconds: number;
  max_frame_bytes: number;
  resumed: MessageHead[];
  active: MessageHead[];
  server_time: number;
  expires_in_seconds?: number | null;
  limits?: Limit[];
}

export interface AcceptedFrame {
  type: "accepted";
  id: string;
  replay: boolean;
  state: State;
  seq: number;
  queue_position?: number | null;
}

export interface AttemptFrame {
  type: "attempt";
  id: string;
  /** `seq` of the event before it; older servers leave it out. */
  after?: number | null;
  seq: number;
  attempt: number;
  target: string;
  model: string;
  mode: "fresh" | "restart" | "continue";
  reason?: { code?: string; message?: string } | null;
}

export interface DeltaFrame {
  type: "delta";
  id: string;
  after: number;
  seq: number;
  text?: string | null;
  reasoning?: string | null;
  tool_calls?: ToolCall[] | null;
}

export interface SnapshotFrame {
  type: "snapshot";
  id: string;
  seq: number;
  attempt: number;
  part: number;
  last: boolean;
  text?: string | null;
  reasoning?: string | null;
  tool_calls?: ToolCall[] | null;
}

export interface DoneFrame {
  type: "done";
  id: string;
  /** `seq` of the event before it; older servers leave it out. */
  after?: number | null;
  seq: number;
  text_bytes: number;
  text_sha256: string;
  finish_reason: string;
  usage: Usage;
  cost_usd?: number | null;
  model: string;
  target: string;
  attempts: number;
  prompt?: { name: string; version: string } | null;
}

export interface FailedFrame {
  type: "failed";
  id: string;
  /** `seq` of the event before it; older servers leave it out. */
  after?: number | null;
  seq: number;
  error: ErrorBody;
  usage: Usage;
  partial: boolean;
}

export interface CancelledFrame {
  type: "cancelled";
  id: string;
  /** `seq` of the event before it; older servers leave it out. */
  after?: number | null;
  seq: number;
  text_bytes: number;
  text_sha256: string;
  usage: Usage;
}

export interface ErrorFrame {
  type: "error";
  re?: string | null;
  id?: string | null;
  error: ErrorBody;
}

export interface PongFrame {
  type: "pong";
  nonce?: string | number | null;
  open?: { id: string; seq: number }[];
}

export interface GoawayFrame {
  type: "goaway";
  reason: string;
  reconnect_after_ms: number;
}

export interface QuotaFrame {
  type: "quota";
  limits: Limit[];
}

export interface NoticeFrame {
  type: "message";
  conversation: string;
  id: string;
  role: string;
}

export interface HistoryFrame {
  type: "history";
  conversation: string;
  messages: Record<string, unknown>[];
  next?: string | null;
}

export type EndFrame = DoneFrame | FailedFrame | CancelledFrame;
export type JournaledFrame = AttemptFrame | DeltaFrame | EndFrame;
export type ServerFrame =
  | WelcomeFrame
  | AcceptedFrame
  | JournaledFrame
  | SnapshotFrame
  | ErrorFrame
  | PongFrame
  | GoawayFrame
  | QuotaFrame
  | NoticeFrame
  | HistoryFrame;
