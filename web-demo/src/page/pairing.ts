/** Coming in by a link: its code is changed for a token, once, before anything else. */

import { ask, Refused } from "./backend.ts";
import { preferences } from "./settings.ts";

export interface Arrival {
  /** The address had a code that was no good. */
  refused: boolean;
  /** A chat to look at first: the one that the other device was at. */
  chat: string | undefined;
}

/** What the address says, read once. */
export async function comeIn(): Promise<Arrival> {
  const said = new URLSearchParams(location.hash.slice(1));
  const code = said.get("code");
  const chat = /^[\w-]{1,64}$/.exec(said.get("chat") ?? "")?.[0];
  // A code is used up, and nobody should bookmark it.
  if (code || chat) history.replaceState(null, "", location.pathname);
  if (!code) return { refused: false, chat };
  try {
    const { token } = await ask<{ token: string }>("/v1/demo/pair", "POST", { code });
    preferences.deviceToken = token;
    return { refused: false, chat };
  } catch (error) {
    return { refused: error instanceof Refused, chat };
  }
}
