/** The transport's two translations. `tests/e2e/test_typescript_client.py` runs it under `useChat`. */

import type { UIMessage, UIMessageChunk } from "ai";
import { expect, test } from "vitest";
import { chatMessages, TidewireChatTransport, uiMessages, visibleParts } from "../src/client/ai-sdk.ts";
import { Client, type WebSocketLike } from "../src/client/socket.ts";
import type { ServerFrame } from "../src/client/types.ts";

const step = { type: "step-start" } as const;
const mark = { type: "text", text: "", providerMetadata: { tidewire: { withdrawn: true } } } as const;

test("steps that were taken back are left out, those before and after stand", () => {
  const parts: UIMessage["parts"] = [
    step,
    { type: "text", text: "kept" },
    step,
    { type: "text", text: "void" },
    mark,
    step,
    { type: "text", text: "stands" },
  ];
  expect(visibleParts({ parts }).flatMap((part) => (part.type === "text" ? [part.text] : []))).toEqual([
    "kept",
    "stands",
  ]);
});

test("messages become those of chat completions, one for each step, tools and pictures included", () => {
  const messages: UIMessage[] = [
    { id: "0", role: "system", parts: [{ type: "text", text: "Be brief." }] },
    {
      id: "1",
      role: "user",
      parts: [
        { type: "text", text: "Look" },
        { type: "file", mediaType: "image/png", url: "data:image/png;base64,AA" },
      ],
    },
    {
      id: "2",
      role: "assistant",
      parts: [
        step,
        { type: "reasoning", text: "hidden" },
        { type: "text", text: "void" },
        mark,
        step,
        { type: "text", text: "I ask." },
        { type: "tool-sky", toolCallId: "c1", state: "output-available", input: { at: 1 }, output: { grey: true } },
        { type: "dynamic-tool", toolName: "sea", toolCallId: "c2", state: "output-error", input: {}, errorText: "wet" },
        step,
        { type: "text", text: "Grey." },
      ],
    },
    { id: "3", role: "user", parts: [{ type: "text", text: "Thanks" }] },
  ];
  const call = (id: string, name: string, args: string): object => ({
    ...{ id, type: "function", function: { name, arguments: args } },
  });
  expect(chatMessages(messages)).toEqual([
    { role: "system", content: "Be brief." },
    {
      role: "user",
      content: [
        { type: "text", text: "Look" },
        { type: "image_url", image_url: { url: "data:image/png;base64,AA" } },
      ],
    },
    { role: "assistant", content: "I ask.", tool_calls: [call("c1", "sky", '{"at":1}'), call("c2", "sea", "{}")] },
    { role: "tool", tool_call_id: "c1", content: '{"grey":true}' },
    { role: "tool", tool_call_id: "c2", content: "wet" },
    { role: "assistant", content: "Grey." },
    { role: "user", content: "Thanks" },
  ]);
});

test("what the server kept becomes messages: steps and tools of one answer in one, what runs left out", () => {
  const call = (id: string, args: string): object => ({
    ...{ id, type: "function", function: { name: "sky", arguments: args } },
  });
  const image = { type: "image_url", image_url: { url: "data:image/png;base64,AA" } };
  const file = { type: "file", file: { filename: "a.pdf", file_data: "https://x/a.pdf" } };
  const entries = [
    { id: "e0", role: "developer", content: "Be brief." },
    { id: "e1", role: "user", content: [{ type: "text", text: "Look" }, image, file, { type: "text", ref: "r" }] },
    { id: "a1", role: "assistant", content: "I ask.", tool_calls: [call("c1", '{"at":1}'), call("c2", "{")] },
    { id: "e2", role: "tool", tool_call_id: "c1", content: '{"grey":true}' },
    { id: "e3", role: "tool", tool_call_id: "c9", content: "of no call" },
    { id: "a2", role: "assistant", content: "Grey." },
    { id: "e4", role: "user", content: "Thanks" },
    { id: "a3", role: "assistant", state: "running", content: null },
  ] as Parameters<typeof uiMessages>[0];
  const errorText = "the model wrote arguments that are not JSON";
  const called = { type: "tool-sky", toolCallId: "c1", input: { at: 1 } };
  const messages = uiMessages(entries);
  expect(messages).toEqual([
    { id: "e0", role: "system", parts: [{ type: "text", text: "Be brief." }] },
    {
      id: "e1",
      role: "user",
      parts: [
        { type: "text", text: "Look" },
        { type: "file", mediaType: "image/png", url: "data:image/png;base64,AA" },
        { type: "file", mediaType: "application/octet-stream", filename: "a.pdf", url: "https://x/a.pdf" },
      ],
    },
    {
      id: "a1",
      role: "assistant",
      parts: [
        step,
        { type: "text", text: "I ask." },
        { ...called, state: "output-available", output: { grey: true } },
        { type: "tool-sky", toolCallId: "c2", state: "output-error", input: undefined, rawInput: "{", errorText },
        step,
        { type: "text", text: "Grey." },
      ],
    },
    { id: "e4", role: "user", parts: [{ type: "text", text: "Thanks" }] },
  ]);
  expect(chatMessages(messages)[3]).toEqual({ role: "tool", tool_call_id: "c1", content: '{"grey":true}' });
});

/** A transport on a connection whose server is this test. */
function transport(): { subject: TidewireChatTransport; say(...frames: object[]): void; sent: { type: string }[] } {
  const sent: { type: string; id: string }[] = [];
  const socket: WebSocketLike = {
    ...{ binaryType: "", protocol: "tidewire.v1.json", onopen: null, onmessage: null, onclose: null, onerror: null },
    send: (data) => void sent.push(...[JSON.parse(data as string)].flat()),
    close: () => undefined,
  };
  const say = (...frames: object[]): void => {
    const id = sent.find((frame) => frame.type === "send")?.id;
    for (const frame of frames) socket.onmessage?.({ data: JSON.stringify({ id, ...frame }) });
  };
  const client = new Client({ url: "ws://test", connect: () => socket });
  client.start();
  socket.onopen?.(undefined as never);
  const welcome = { session: "s", user: "u", tier: "free", heartbeat_seconds: 20, max_frame_bytes: 1 << 20 };
  say({ type: "welcome", ...welcome, resumed: [], active: [], server_time: 0 } satisfies Partial<ServerFrame>);
  return { subject: new TidewireChatTransport({ client }), say, sent };
}

async function take(
  stream: ReadableStream<UIMessageChunk>,
  count = Number.POSITIVE_INFINITY,
): Promise<UIMessageChunk[]> {
  const reader = stream.getReader();
  const chunks: UIMessageChunk[] = [];
  while (chunks.length < count) {
    const { value, done } = await reader.read();
    if (done) break;
    chunks.push(value);
  }
  reader.releaseLock();
  return chunks;
}

const question: UIMessage = { id: "q", role: "user", parts: [{ type: "text", text: "?" }] };
const asking = { chatId: "c", messageId: undefined, messages: [question], trigger: "submit-message" as const };
const attempt = { type: "attempt", seq: 1, attempt: 1, target: "a", model: "a", mode: "fresh" };

test("an attempt that starts over marks what was told, also a tool's input, and tells the new answer as a new step", async () => {
  const { subject, say } = transport();
  const stream = await subject.sendMessages({ ...asking, abortSignal: undefined });
  const piece = { index: 0, id: "c1", type: "function", function: { name: "sky", arguments: '{"a' } };
  say(attempt, { type: "delta", after: 1, seq: 2, text: "wrong", tool_calls: [piece] });
  const before = await take(stream, 6);
  say({ ...attempt, seq: 3, after: 2, attempt: 2, mode: "restart" }, { type: "delta", after: 3, seq: 4, text: "ab" });
  const sha = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603";
  const end = { finish_reason: "stop", usage: {}, model: "a", target: "a", attempts: 2 };
  say({ type: "done", after: 4, seq: 5, text_bytes: 2, text_sha256: sha, ...end });
  const after = await take(stream);
  expect(before.map((chunk) => chunk.type)).toEqual([
    ...["start", "start-step", "text-start", "text-delta", "text-end", "tool-input-start"],
  ]);
  expect(after.map((chunk) => chunk.type)).toEqual([
    ...["tool-input-delta", "tool-input-error", "text-start", "text-delta", "text-end", "finish-step"],
    ...["start-step", "text-start", "text-delta", "text-end", "finish-step", "finish"],
  ]);
});

test("chats are loaded only where the server keeps them", async () => {
  await expect(transport().subject.loadMessages("c")).rejects.toThrow("give `conversations: true`");
});

test("a failure comes after what stands, and is typed", async () => {
  const { subject, say } = transport();
  const stream = await subject.sendMessages({ ...asking, abortSignal: undefined });
  const error = { code: "upstream_timeout", class: "temporary", status: 504, message: "slow", retryable: true };
  say(attempt, { type: "delta", after: 1, seq: 2, text: "half" });
  say({ type: "failed", after: 2, seq: 3, error, usage: {}, partial: true });
  expect((await take(stream, 4)).at(-1)).toMatchObject({ type: "text-delta", delta: "half" });
  await expect(take(stream)).rejects.toMatchObject({
    name: "MessageFailed",
    code: "upstream_timeout",
    retryable: true,
  });
});

test("a resume that makes way for another one does not stop the answer; an abort by itself does", async () => {
  const { subject, say, sent } = transport();
  await subject.sendMessages({ ...asking, abortSignal: undefined });
  say({ type: "accepted", replay: false, state: "streaming", seq: 0 });
  const [first, second] = [new AbortController(), new AbortController()];
  await subject.reconnectToStream({ chatId: "c", abortSignal: first.signal });
  first.abort();
  await subject.reconnectToStream({ chatId: "c", abortSignal: second.signal });
  await new Promise((resolve) => setTimeout(resolve, 5));
  expect(sent.map((frame) => frame.type)).not.toContain("cancel");
  second.abort();
  await expect.poll(() => sent.map((frame) => frame.type)).toContain("cancel");
  expect(await subject.reconnectToStream({ chatId: "other" })).toBeNull();
});
