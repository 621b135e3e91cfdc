/** Coming in by a link: its code is changed for a token, once, before anything else. */

import { ask, Refused } from "./backend.ts";
import { preferences } from "./settings.ts";

export interface Arrival {
  /** The address had a code that was no good. */
  refused: boolean;
  /** An answer to look at first: the one that the other device was at. */
  follow: string | undefined;
}

/** What the address says, read once. */
export async function comeIn(): Promise<Arrival> {
  const said = new URLSearchParams(location.hash.slice(1));
  const code = said.get("code");
  const follow = said.get("follow") ?? undefined;
  // A code is used up, and nobody should bookmark it.
  if (code || follow) history.replaceState(null, "", location.pathname);
  if (!code) return { refused: false, follow };
  try {
    const { token } = await ask<{ token: string }>("/v1/demo/pair", "POST", { code });
    preferences.deviceToken = token;
    return { refused: false, follow };
  } catch (error) {
    return { refused: error instanceof Refused, follow };
  }
}
