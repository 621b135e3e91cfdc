/** The same question, with the same id, over two connections: one answer, one bill, as the server itself tells it. */

import { Client, type ClientOptions, type SendRequest, type Usage } from "../client/index.ts";
import { ask } from "./backend.ts";

/** What `GET /v1/messages/{id}` says, as far as it is of use here. */
interface Kept {
  id: string;
  state: string;
  text: string;
  usage?: Usage;
  cost_usd?: number;
  attempts: { target: string; outcome: string }[];
}

export interface Twice {
  id: string;
  /** Where the server shows the message. */
  path: string;
  /** The server said on one of the connections: known already, attached. */
  attached: boolean;
  /** Both connections and the message that the server keeps agree on how it ended, on its text and on its tokens. */
  same: boolean;
  /** Every call to a model that the server made for it, as `target: outcome`. */
  attempts: string[];
  tokens: number;
  costUsd: number;
}

/** Send what `client` has just sent over another connection too, wait for both, and ask the server. Throws `Refused`. */
export async function sendTwice(client: Client, request: SendRequest, options: ClientOptions): Promise<Twice> {
  const other = new Client(options);
  let attached = false;
  other.on((event) => {
    if (event.type === "accepted" && event.replay) attached = true;
  });
  other.start();
  const answers = [client.attach(request.id), other.ask(request)];
  await Promise.allSettled(answers.map((answer) => answer.done()));
  other.close();
  const path = `/v1/messages/${encodeURIComponent(request.id)}`;
  const kept = await ask<Kept>(path);
  const same = answers.every(
    ({ message: { state, text, usage } }) =>
      state === kept.state && text === kept.text && usage?.total_tokens === kept.usage?.total_tokens,
  );
  return {
    ...{ id: kept.id, path, attached, same },
    attempts: kept.attempts.map(({ target, outcome }) => `${target}: ${outcome}`),
    tokens: kept.usage?.total_tokens ?? 0,
    costUsd: kept.cost_usd ?? 0,
  };
}
