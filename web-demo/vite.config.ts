import { defineConfig } from "vite";

/** Where `npm run dev` finds the server. */
const SERVER = process.env.TIDEWIRE_URL ?? "http://127.0.0.1:8080";

export default defineConfig({
  build: {
    outDir: "../server/http/static",
    emptyOutDir: true,
    target: "es2022",
    // The page's content security policy allows neither inline code nor data: addresses.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/v1": { target: SERVER, ws: true } } },
});
