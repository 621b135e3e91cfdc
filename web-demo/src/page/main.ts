import "./style.css";
import "./panel.css";
import { Client, type ClientOptions } from "../client/index.ts";
import { App } from "./app.ts";
import { loadCodec } from "./codec.ts";
import { comeIn } from "./pairing.ts";
import { preferences, storageOf } from "./settings.ts";
import { strings } from "./strings.ts";

/** The WebSocket beside this page. */
function endpoint(): string {
  const url = new URL("/v1/ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

async function main(): Promise<void> {
  // A link to a chat, or with a code, that is followed in this very tab.
  window.addEventListener("hashchange", () => location.reload());
  const arrival = await comeIn();
  const { token } = preferences;
  const storage = storageOf("sessionStorage");
  const options: ClientOptions = {
    url: endpoint(),
    codec: await loadCodec(preferences.codec),
    ...(token && { token }),
  };
  const client = new Client({ ...options, ...(storage && { storage }), window, document });
  new App(client, options).start(document.body, arrival.refused ? strings.token.linkUsed : "", arrival.chat);
}

void main();
