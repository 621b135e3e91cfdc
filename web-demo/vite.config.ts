import { readdirSync, readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

/** Where `npm run dev` finds the server. */
const SERVER = process.env.SERVER_URL ?? "http://127.0.0.1:8080";

/** The licences of everything that is shipped, as `licenses.txt` beside the page. */
function licenses(): Plugin {
  return {
    name: "licenses",
    generateBundle() {
      const manifest = JSON.parse(readFileSync("package.json", "utf8"));
      const texts = Object.keys(manifest.dependencies).map((name) => {
        const folder = `node_modules/${name}`;
        const file = readdirSync(folder).find((entry) => /^licen[cs]e(\.\w+)?$/i.test(entry));
        const text = readFileSync(`${folder}/${file}`, "utf8").trim();
        return `${name}\n${"=".repeat(name.length)}\n\n${text}\n`;
      });
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join("\n\n") });
    },
  };
}

export default defineConfig({
  plugins: [licenses()],
  build: {
    outDir: "../server/http/static",
    emptyOutDir: true,
    target: "es2022",
    // The page's content security policy allows neither inline code nor data: addresses.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: { input: { chat: "index.html", operator: "operator/index.html" } },
  },
  server: { proxy: { "/v1": { target: SERVER, ws: true } } },
});
