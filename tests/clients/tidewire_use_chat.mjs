// `useChat` of the AI SDK on our transport, in React, against nodes that are killed: node tidewire_use_chat.mjs WS,WS [CODEC]
import { Window } from "happy-dom";

const window = new Window({ url: "http://localhost/" });
Object.assign(globalThis, { window, document: window.document });
Object.defineProperty(globalThis, "navigator", { value: window.navigator, configurable: true });
const { lastAssistantMessageIsCompleteWithToolCalls } = await import("ai");
const { TidewireChatTransport, visibleParts } = await import("../../web-demo/dist/ai-sdk.js");
const { chatPage } = await import("./chat_page.mjs");
const { client, node, Storage, say } = await import("./place.mjs");

/** A page with one chat. Only `storage` and the kept messages outlive it. */
function page({ storage = new Storage(), request, ...options } = {}) {
	const connection = client({ storage });
	const found = { errors: [], finished: [] };
	const shown = chatPage(new TidewireChatTransport({ client: connection, request }), {
		id: "chat-1",
		onError: (error) => found.errors.push(error),
		onFinish: (end) => found.finished.push(end),
		...options,
	});
	Object.defineProperty(found, "chat", { get: () => shown.chat });
	return { found, connection, storage, until: shown.until, unload: shown.unload };
}

const answer = (chat) => chat.messages.findLast((message) => message.role === "assistant");
const everyTextOf = (message) => message.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
const textOf = (message) =>
	(message ? visibleParts(message) : []).map((part) => (part.type === "text" ? part.text : "")).join("");
const reasoningOf = (message) =>
	visibleParts(message).map((part) => (part.type === "reasoning" ? part.text : "")).join("");
const ended = (chat) => chat.status === "ready" || chat.status === "error";
const report = {};

// Text and reasoning stream; the node that streams dies; the reader sees one answer.
const whole = page();
await whole.until(() => true);
let asked = whole.found.chat.sendMessage({ text: "script tokens=200 rate=60 unicode=1 reasoning=6\nchat-kill" });
await whole.until((chat) => textOf(answer(chat)).length > 100);
say({ kill: 0 });
await asked;
report.kill = {
	text: textOf(answer(whole.found.chat)),
	reasoning: reasoningOf(answer(whole.found.chat)),
	roles: whole.found.chat.messages.map((message) => message.role),
	status: whole.found.chat.status,
	finish: whole.found.finished.map((end) => end.finishReason),
	connections: whole.connection.status.connections,
};
say({ restart: 0 });

// Another answer to the same question.
const earlier = answer(whole.found.chat).id;
await whole.found.chat.regenerate();
report.regenerate = {
	sameText: textOf(answer(whole.found.chat)) === report.kill.text,
	otherMessage: answer(whole.found.chat).id !== earlier,
	count: whole.found.chat.messages.length,
};
whole.unload();

// With tools the node that takes over starts over: who renders all parts is told, `visibleParts` has the answer alone.
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const restarted = page({ request: { tools } });
await restarted.until(() => true);
asked = restarted.found.chat.sendMessage({ text: "script tokens=200 rate=60\nchat-restart" });
await restarted.until((chat) => textOf(answer(chat)).length > 100);
const lost = node();
say({ kill: lost });
await asked;
report.restart = { text: textOf(answer(restarted.found.chat)), every: everyTextOf(answer(restarted.found.chat)) };
say({ restart: lost });
restarted.unload();

// Stop keeps what stands, and the server stops.
const stopped = page();
await stopped.until(() => true);
asked = stopped.found.chat.sendMessage({ text: "script tokens=4000 rate=50\nchat-stop" });
await stopped.until((chat) => textOf(answer(chat)).length > 20);
await stopped.found.chat.stop();
await asked;
report.stop = { id: answer(stopped.found.chat).id, text: textOf(answer(stopped.found.chat)), status: stopped.found.chat.status };
stopped.unload();

// A reload in mid-answer, twice; the second page had kept the half answer too. Nothing is doubled.
const first = page();
await first.until(() => true);
void first.found.chat.sendMessage({ text: "script tokens=300 rate=60\nchat-reload" });
await first.until((chat) => textOf(answer(chat)).length > 100);
const kept = structuredClone(first.found.chat.messages);
first.unload();
const second = page({ storage: first.storage, messages: kept, resume: true });
await second.until((chat) => textOf(answer(chat)).length > textOf(kept.at(-1)).length + 100);
second.unload();
const third = page({ storage: first.storage, messages: kept.slice(0, 1), resume: true });
await third.until((chat) => chat.status === "streaming");
await third.until(ended);
report.reload = {
	text: textOf(answer(third.found.chat)),
	count: third.found.chat.messages.length,
	id: answer(third.found.chat).id === kept.at(-1).id,
	secondCount: second.found.chat.messages.length,
};
third.unload();
const fourth = page({ storage: first.storage, messages: kept, resume: true });
await fourth.until((chat) => chat.status === "ready");
report.nothingToResume = fourth.found.chat.messages.length;
fourth.unload();

// Stop stops a resumed answer too.
const fifth = page();
await fifth.until(() => true);
void fifth.found.chat.sendMessage({ text: "script tokens=4000 rate=50\nchat-resume-stop" });
await fifth.until((chat) => textOf(answer(chat)).length > 20);
fifth.unload();
const sixth = page({ storage: fifth.storage, messages: fifth.found.chat.messages.slice(0, 1), resume: true });
await sixth.until((chat) => textOf(answer(chat)).length > 40);
await sixth.found.chat.stop();
const stoppedId = answer(sixth.found.chat).id;
await new Promise((resolve) => {
	const look = () => sixth.connection.session.messages.get(stoppedId).ended && resolve();
	sixth.connection.on(look);
	look();
});
report.resumedStop = { id: stoppedId, state: sixth.connection.session.messages.get(stoppedId).state };
sixth.unload();

// A tool of the browser: called, answered, and the model goes on in the same message.
const calling = page({ request: { tools }, sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls });
await calling.until(() => true);
void calling.found.chat.sendMessage({ text: "script tokens=5 tool=weather times=1\nchat-tool" });
const isCall = (part) => part.type === "tool-weather";
const called = await calling.until((chat) => answer(chat)?.parts.some((part) => isCall(part) && part.state === "input-available"));
const call = answer(called).parts.find(isCall);
await calling.until(ended);
report.tool = { input: call.input, state: call.state };
const outputs = calling.found.chat.addToolOutput({ tool: "weather", toolCallId: call.toolCallId, output: { sky: "grey" } });
await calling.until((chat) => answer(chat).parts.filter((part) => part.type === "step-start").length > 1);
await outputs;
report.tool.messages = calling.found.chat.messages.length;
report.tool.output = answer(calling.found.chat).parts.find(isCall).output;
await calling.found.chat.stop();
calling.unload();

// A typed error.
const failing = page({ request: { model: "nothing" } });
await failing.until(() => true);
await failing.found.chat.sendMessage({ text: "hello" });
const [error] = failing.found.errors;
report.error = { name: error.name, code: error.code, retryable: error.retryable, status: failing.found.chat.status };
failing.unload();

say({ report });
process.exit(0);
