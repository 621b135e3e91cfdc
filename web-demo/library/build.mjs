/** Builds the npm package into `dist`: one module per source file, its types, the manifest, README and licence. */

import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

process.chdir(new URL("..", import.meta.url).pathname);
rmSync("dist", { recursive: true, force: true });
execFileSync("node_modules/.bin/tsc", ["-p", "tsconfig.library.json"], { stdio: "inherit" });
for (const name of readdirSync("dist").filter((file) => file.endsWith(".d.ts"))) {
  // The compiler leaves the extension of the sources in declarations, where only TypeScript itself finds them.
  const text = readFileSync(`dist/${name}`, "utf8").replace(/(from "\.\/[^"]+)\.ts"/g, '$1.js"');
  writeFileSync(`dist/${name}`, text);
}
copyFileSync("library/package.json", "dist/package.json");
copyFileSync("library/README.md", "dist/README.md");
copyFileSync("../LICENSE", "dist/LICENSE");
