/** What of a chat of the AI SDK has to be sent when the server keeps it: only what is new, and where it hangs. */

import type { UIMessage } from "ai";
import { textOf, uiMessages } from "./ai-messages.ts";
import type { Entry } from "./conversation.ts";
import type { Conversations } from "./conversations.ts";
import { TidewireError } from "./errors.ts";
import type { ChatMessage, HistoryPage, SendRequest } from "./types.ts";

/** The most entries of one page. */
const PAGE = 200;

/** Where a request hangs and what it brings. */
export type Placed = Pick<SendRequest, "conversation" | "input" | "parent">;
type Translate = (messages: UIMessage[]) => ChatMessage[];

/** A request of the SDK. */
export interface Wish {
  trigger: "submit-message" | "regenerate-message";
  messageId: string | undefined;
  messages: UIMessage[];
}

/** One chat of the SDK that the server keeps as a conversation. */
export class KeptChat {
  private readonly conversations: Conversations;
  private readonly id: string;
  private readonly translate: Translate;
  /** Questions that were refused, so that the server does not have them. */
  private readonly refused = new Set<string>();

  constructor(conversations: Conversations, id: string, translate: Translate) {
    this.conversations = conversations;
    this.id = id;
    this.translate = translate;
  }

  /** The whole chat, as the SDK wants it; what still runs is left to `resume`. */
  async messages<MESSAGE extends UIMessage>(): Promise<MESSAGE[]> {
    const entries: Entry[] = [];
    for (let before: string | undefined; ; ) {
      const page = await this.page(before === undefined ? {} : { before });
      entries.unshift(...(page.messages as unknown as Entry[]));
      if (page.next == null) return uiMessages<MESSAGE>(entries);
      before = page.next;
    }
  }

  /** The message that is being answered, whichever device asked. */
  async running(): Promise<string | undefined> {
    return (await this.page({}, 1)).current ?? undefined;
  }

  /** What to send. */
  async place(wish: Wish): Promise<Placed> {
    const { trigger, messageId, messages } = wish;
    const last = messages.at(-1);
    if (last === undefined) throw new RangeError("there is nothing to send");
    if (trigger === "regenerate-message") return this.again(messageId, last);
    const fresh = { conversation: this.id, input: this.fresh(messages) };
    if (messageId === undefined || last.role === "assistant") return fresh;
    return { ...fresh, parent: await this.above(messages) };
  }

  /** The server never took the question. */
  onRefused(messages: UIMessage[]): void {
    const last = messages.at(-1);
    if (last?.role === "user") this.refused.add(last.id);
  }

  /** The server has everything up to here. */
  onAccepted(messages: UIMessage[]): void {
    for (const { id } of messages) this.refused.delete(id);
  }

  /** What the server does not have: the last message, and those before it that it refused or that open the chat. */
  private fresh(messages: UIMessage[]): ChatMessage[] {
    if (messages.at(-1)?.role === "assistant") return resultsAtTheEnd(this.translate(messages));
    let from = messages.length - 1;
    while (from > 0 && this.isNew(messages[from - 1] as UIMessage)) from--;
    return this.translate(messages.slice(from));
  }

  private isNew({ id, role, parts }: UIMessage): boolean {
    // A refusal leaves an answer behind that says nothing.
    if (role === "assistant") return parts.every((part) => part.type === "step-start");
    return role === "system" || this.refused.has(id);
  }

  /** Another answer in the place of `answer`; to a question that the server does not have, the first one. */
  private async again(answer: string | undefined, question: UIMessage): Promise<Placed> {
    const conversation = this.id;
    if (!this.refused.has(question.id)) {
      const parent = (await this.answered(answer)) ?? (await this.lastQuestion(question));
      if (parent !== undefined) return { conversation, parent };
    }
    return { conversation, input: this.translate([question]) };
  }

  /** The entry that an answer answers. */
  private async answered(answer: string | undefined): Promise<string | undefined> {
    if (answer === undefined) return undefined;
    try {
      const { parent, role } = (await this.conversations.part(this.id, { entry: answer })) as Entry;
      return role === "assistant" ? (parent ?? undefined) : undefined;
    } catch (error) {
      return undefinedIfUnknown(error);
    }
  }

  /** The last question of the chosen branch, if it is this one. */
  private async lastQuestion(question: UIMessage): Promise<string | undefined> {
    const { messages } = await this.page({});
    const found = uiMessages(messages as unknown as Entry[]).findLast((message) => message.role === "user");
    return found && textOf(found.parts) === textOf(question.parts) ? found.id : undefined;
  }

  /** The entry below which an edited question hangs: the end of the answer before it. */
  private async above(messages: UIMessage[]): Promise<string> {
    const before = messages.slice(0, -1).findLast((message) => message.role === "assistant");
    if (!before) return this.id;
    const page = await this.page({ after: before.id, branch: before.id });
    let end = before.id;
    for (const { id, role } of page.messages as unknown as Entry[]) {
      if (role !== "assistant" && role !== "tool") break;
      end = id;
    }
    return end;
  }

  private async page(where: { before?: string; after?: string; branch?: string }, limit = PAGE): Promise<HistoryPage> {
    try {
      return await this.conversations.history(this.id, { ...where, limit });
    } catch (error) {
      undefinedIfUnknown(error);
      return { type: "history", conversation: this.id, messages: [] };
    }
  }
}

function undefinedIfUnknown(error: unknown): undefined {
  const { code } = error instanceof TidewireError ? error : { code: "" };
  if (code !== "conversation_unknown" && code !== "message_unknown") throw error;
}

function resultsAtTheEnd(messages: ChatMessage[]): ChatMessage[] {
  return messages.slice(messages.findLastIndex((message) => message.role !== "tool") + 1);
}
