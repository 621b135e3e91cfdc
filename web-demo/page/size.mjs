/** What a browser loads before the page can be used, gzipped where a server would. Fails above 150 KB. */

import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "vite";

const MAX_FIRST_LOAD_BYTES = 150_000;
const root = new URL("..", import.meta.url).pathname;
const PACKED = /\.(woff2|png)$/;

const { output } = await build({ root, logLevel: "silent", build: { write: false } });
const named = new Map(output.map((file) => [file.fileName, file]));
const first = new Set(["index.html"]);
const entry = output.find((file) => file.type === "chunk" && file.isEntry && file.name === "chat");
const follow = (name) => {
  if (first.has(name)) return;
  first.add(name);
  for (const next of named.get(name)?.imports ?? []) follow(next);
  for (const style of named.get(name)?.viteMetadata?.importedCss ?? []) first.add(style);
};
follow(entry.fileName);
for (const name of named.keys()) if (PACKED.test(name)) first.add(name);
let total = gzipSync(readFileSync(`${root}public/theme.js`)).length;
for (const name of first) {
  const file = named.get(name);
  const bytes = Buffer.from(file.code ?? file.source);
  total += PACKED.test(name) ? bytes.length : gzipSync(bytes).length;
}
console.log(`page     ${total} bytes at first load, gzipped`);
if (total > MAX_FIRST_LOAD_BYTES) {
  console.error(`the page is too large: ${total} bytes, ${MAX_FIRST_LOAD_BYTES} are allowed`);
  process.exit(1);
}
