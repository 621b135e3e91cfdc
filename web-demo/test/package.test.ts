/** The npm package as others get it: packed, installed somewhere else, imported by Node, read by the compiler. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = new URL("..", import.meta.url).pathname;
let folder: string;

function run(command: string, ...words: string[]): string {
  return execFileSync(command, words, { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tidewire-package-"));
  execFileSync("node", ["library/build.mjs"], { cwd: root });
  const [packed] = JSON.parse(run("npm", "pack", "--json", `${root}dist`));
  writeFileSync(join(folder, "package.json"), '{ "type": "module", "private": true }');
  run("npm", "install", "--offline", "--no-audit", "--no-fund", "--silent", `./${packed.filename}`);
}, 60_000);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("Node imports it without any other package", () => {
  writeFileSync(
    join(folder, "use.js"),
    `import { Client, TidewireError, newId } from "tidewire";
     import { Session } from "tidewire/core";
     import { Conversations } from "tidewire/conversations";
     import { TidewireChatTransport } from "tidewire/ai-sdk";
     const client = new Client({ url: "ws://localhost", connect: () => ({ send() {}, close() {} }) });
     const answer = client.ask({ messages: [{ role: "user", content: "?" }] });
     new TidewireChatTransport({ client });
     new Conversations(client).open("trip");
     console.log(JSON.stringify([answer.message.state, newId().length, typeof TidewireError, new Session().hello().type]));`,
  );
  expect(JSON.parse(run("node", "use.js"))).toEqual(["sending", 36, "function", "hello"]);
});

test.each([
  ["nodenext", "nodenext"],
  ["node16", "node16"],
  ["preserve", "bundler"],
])("its types hold with module %s, and refuse what is wrong", (module, moduleResolution) => {
  const source = `import { Client, type Piece, MessageError, type ErrorCode } from "tidewire";
    import { msgpackCodec } from "tidewire/msgpack";
    import { sharedTabs } from "tidewire/tabs";
    import { Conversations, type Overview } from "tidewire/conversations";
    import { Session } from "tidewire/core";

    const client = new Client({ url: "ws://x", token: async () => "t", connect: sharedTabs({ account: "a", client: { codec: msgpackCodec } }) });
    for await (const piece of client.ask({ messages: [{ role: "user", content: "?" }] })) piece satisfies Piece;
    const code: ErrorCode = "quota_exceeded";
    export const caught = (error: unknown): boolean => error instanceof MessageError && error.code === code;
    const chat = await new Conversations(client).open("trip", { limit: 20 }).ready();
    chat.entries.map((entry) => chat.textOf(entry) satisfies string);
    (await new Conversations(client).list()).conversations satisfies Overview[];
    new Session().subscribed("trip") satisfies number | undefined;
    // @ts-expect-error a role that does not exist
    client.ask({ messages: [{ role: "nobody", content: "?" }] });`;
  writeFileSync(join(folder, "use.ts"), source);
  const options = {
    strict: true,
    exactOptionalPropertyTypes: true,
    module,
    moduleResolution,
    target: "es2022",
    noEmit: true,
  };
  const tsconfig = { compilerOptions: { ...options, lib: ["es2023", "dom"], types: [] }, files: ["use.ts"] };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(tsconfig));
  run(`${root}node_modules/.bin/tsc`, "-p", ".");
});

test("it carries its licence and a README", () => {
  const at = (name: string): string => readFileSync(join(folder, "node_modules/tidewire", name), "utf8");
  expect(at("LICENSE")).toContain("MIT");
  expect(at("README.md")).toContain('from "tidewire"');
});
