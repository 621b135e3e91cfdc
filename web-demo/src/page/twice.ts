/** The same question, with the same id, over two connections: one answer, one bill. */

import { Client, type ClientOptions, type Message, type SendRequest } from "../client/index.ts";

export interface Twice {
  /** Whether both were told the same text, which the server's hash confirmed for each. */
  same: boolean;
  /** Whether one of them was attached to what the other had begun. */
  attached: boolean;
  attempts: number;
  tokens: number;
  costUsd: number | undefined;
}

/** Send `first`'s request once more, over a connection of its own, and wait for both. */
export function sendTwice(first: Message, request: SendRequest, options: ClientOptions): Promise<Twice> {
  const other = new Client(options);
  let attached = false;
  return new Promise((resolve) => {
    const look = (): void => {
      const second = other.session.messages.get(request.id);
      if (!second?.ended || !first.ended) {
        setTimeout(look, 100);
        return;
      }
      other.close();
      const end = second.end?.type === "done" ? second.end : undefined;
      resolve({
        same: first.text === second.text && first.state === second.state,
        attached,
        attempts: end?.attempts ?? second.attempt,
        tokens: second.usage?.total_tokens ?? 0,
        costUsd: end?.cost_usd ?? undefined,
      });
    };
    other.on((event) => {
      if (event.type === "accepted" && event.replay) attached = true;
    });
    other.start();
    other.send(request);
    look();
  });
}
