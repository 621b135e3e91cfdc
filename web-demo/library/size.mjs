/** What an application ships for each entry of the library, minified and gzipped. Fails if the main one is too large. */

import { gzipSync } from "node:zlib";
import { build } from "vite";

/** Without msgpack, which is an entry of its own. */
const MAX_MAIN_BYTES = 12 * 1024;
const root = new URL("..", import.meta.url).pathname;

export async function sizeOf(entry) {
  const [{ output }] = await build({
    configFile: false,
    logLevel: "silent",
    root,
    build: {
      write: false,
      minify: true,
      target: "es2022",
      lib: { entry: `src/client/${entry}.ts`, formats: ["es"] },
      rolldownOptions: { external: ["ai"] },
    },
  });
  return gzipSync(output[0].code).length;
}

const sizes = {};
for (const entry of ["index", "session", "conversations", "msgpack", "tabs", "ai-sdk"])
  sizes[entry] = await sizeOf(entry);
for (const [entry, bytes] of Object.entries(sizes)) console.log(`${entry.padEnd(13)} ${bytes} bytes gzipped`);
if (sizes.index > MAX_MAIN_BYTES) {
  console.error(`the library is too large: ${sizes.index} bytes, ${MAX_MAIN_BYTES} are allowed`);
  process.exit(1);
}
