/** Messages of the AI SDK and of the chat-completions format, one made from the other. */

import type { UIMessage } from "ai";
import type { Entry } from "./conversation.ts";
import type { ChatMessage, ToolCall } from "./types.ts";

/** The parts of a message that stand: without steps that were taken back because another attempt started over. */
export function visibleParts<MESSAGE extends Pick<UIMessage, "parts">>(message: MESSAGE): MESSAGE["parts"] {
  return stepsOf(message.parts)
    .filter((step) => !step.some(isMark))
    .flat() as MESSAGE["parts"];
}

type Part = UIMessage["parts"][number];

function stepsOf(parts: Part[]): Part[][] {
  const steps: Part[][] = [[]];
  for (const part of parts) {
    if (part.type === "step-start") steps.push([]);
    steps.at(-1)?.push(part);
  }
  return steps.filter((step) => step.length > 0);
}

function isMark(part: Part): boolean {
  return part.type === "text" && part.providerMetadata?.tidewire?.withdrawn === true;
}

/** The SDK's messages in the chat-completions format: one entry per step, with the results of its tools behind it. */
export function chatMessages(messages: UIMessage[]): ChatMessage[] {
  return messages.flatMap((message) => {
    if (message.role !== "assistant") {
      const content = contentOf(message.parts);
      return content.length > 0 ? [{ role: message.role, content }] : [];
    }
    return stepsOf(visibleParts(message)).flatMap(assistantStep);
  });
}

function contentOf(parts: Part[]): string | Record<string, unknown>[] {
  if (!parts.some((part) => part.type === "file")) return textOf(parts);
  return parts.flatMap((part): Record<string, unknown>[] => {
    if (part.type === "text") return [{ type: "text", text: part.text }];
    if (part.type !== "file") return [];
    if (part.mediaType.startsWith("image/")) return [{ type: "image_url", image_url: { url: part.url } }];
    return [{ type: "file", file: { filename: part.filename ?? "file", file_data: part.url } }];
  });
}

/** The text of some parts. */
export function textOf(parts: Part[]): string {
  return parts.map((part) => (part.type === "text" ? part.text : "")).join("");
}

interface ToolPart {
  toolCallId: string;
  toolName?: string;
  state: string;
  input?: unknown;
  rawInput?: unknown;
  output?: unknown;
  errorText?: string;
}

function assistantStep(parts: Part[]): ChatMessage[] {
  const tools = parts.filter((part) => part.type === "dynamic-tool" || part.type.startsWith("tool-"));
  const calls: Record<string, unknown>[] = [];
  const results: ChatMessage[] = [];
  for (const part of tools) {
    const tool = part as unknown as ToolPart;
    if (tool.state === "input-streaming") continue;
    const name = tool.toolName ?? part.type.slice("tool-".length);
    const written = typeof tool.rawInput === "string" ? tool.rawInput : JSON.stringify(tool.input ?? {});
    calls.push({ id: tool.toolCallId, type: "function", function: { name, arguments: written } });
    const output = tool.state === "output-available" ? tool.output : (tool.errorText ?? undefined);
    if (output === undefined) continue;
    const content = typeof output === "string" ? output : JSON.stringify(output);
    results.push({ role: "tool", tool_call_id: tool.toolCallId, content });
  }
  const content = textOf(parts);
  if (!content && calls.length === 0) return [];
  return [{ role: "assistant", content: content || null, ...(calls.length > 0 && { tool_calls: calls }) }, ...results];
}

/** The entries of a conversation as the SDK's messages; the steps of one answer, with their tools, become one. */
export function uiMessages<MESSAGE extends UIMessage = UIMessage>(entries: Entry[]): MESSAGE[] {
  const messages: UIMessage[] = [];
  let answering: UIMessage | undefined;
  for (const entry of entries) {
    if (entry.role === "tool") {
      if (answering) putResult(answering, entry);
    } else if (entry.role === "assistant") {
      if (entry.state === "running") continue; // It is resumed, from its beginning.
      if (!answering) {
        answering = { id: entry.id, role: "assistant", parts: [] };
        messages.push(answering);
      }
      answering.parts.push({ type: "step-start" }, ...partsOf(entry), ...callsOf(entry));
    } else {
      answering = undefined;
      messages.push({ id: entry.id, role: entry.role === "user" ? "user" : "system", parts: partsOf(entry) });
    }
  }
  return messages as MESSAGE[];
}

function partsOf({ content }: Entry): Part[] {
  if (content == null || content === "") return [];
  if (typeof content === "string") return [{ type: "text", text: content }];
  return content.flatMap((part): Part[] => {
    if (part.type === "text" && typeof part.text === "string") return [{ type: "text", text: part.text }];
    const image = part.image_url as { url: string } | undefined;
    if (image) return [{ type: "file", mediaType: mediaTypeOf(image.url, "image/*"), url: image.url }];
    const file = part.file as { filename: string; file_data: string } | undefined;
    if (!file) return [];
    const mediaType = mediaTypeOf(file.file_data, "application/octet-stream");
    return [{ type: "file", mediaType, filename: file.filename, url: file.file_data }];
  });
}

function mediaTypeOf(url: string, otherwise: string): string {
  return /^data:([^;,]+)/.exec(url)?.[1] ?? otherwise;
}

function callsOf({ tool_calls: calls = [] }: Entry): Part[] {
  return (calls as ToolCall[]).map((call) => {
    const known = { type: `tool-${call.function?.name ?? ""}` as const, toolCallId: call.id ?? "" };
    try {
      return { ...known, state: "input-available", input: JSON.parse(call.function?.arguments || "{}") };
    } catch {
      const errorText = "the model wrote arguments that are not JSON";
      return { ...known, state: "output-error", input: undefined, rawInput: call.function?.arguments, errorText };
    }
  });
}

function putResult(message: UIMessage, { tool_call_id: id, content }: Entry): void {
  const at = message.parts.findLastIndex((part) => "toolCallId" in part && part.toolCallId === id);
  const call = message.parts[at];
  if (!call || !("toolCallId" in call) || call.state !== "input-available") return;
  const { type, toolCallId, input } = call;
  message.parts[at] = { type, toolCallId, input, state: "output-available", output: outputOf(content) } as Part;
}

/** What the tool gave: the transport writes what is no text as JSON. */
function outputOf(content: Entry["content"]): unknown {
  if (typeof content !== "string") return content;
  try {
    return JSON.parse(content);
  } catch {
    return content;
  }
}
