import "./style.css";
import "./panel.css";
import { Client } from "../client/index.ts";
import { App } from "./app.ts";
import { loadCodec } from "./codec.ts";
import { preferences, storageOf } from "./settings.ts";

/** The WebSocket beside this page. */
function endpoint(): string {
  const url = new URL("/v1/ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

async function main(): Promise<void> {
  const { token } = preferences;
  const storage = storageOf("sessionStorage");
  const client = new Client({
    url: endpoint(),
    codec: await loadCodec(preferences.codec),
    ...(token && { token }),
    ...(storage && { storage }),
    window,
    document,
  });
  new App(client).start(document.body);
}

void main();
