// The TypeScript client under `tidewire conformance --client "node tests/clients/tidewire_adapter.mjs"`.
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { Client } from "../../web-demo/dist/index.js";
import { msgpackCodec } from "../../web-demo/dist/msgpack.js";

let client;
let told = [];
let named = new Set();

let asked = 0;

/** `tokens`, beyond what the vectors need: what a source of tokens gives, one after another. */
function begin({ url, subprotocol, tokens }) {
	asked = 0;
	const token = tokens && (async () => tokens[asked++]);
	client = new Client({ url, token, WebSocket, ...(subprotocol.endsWith("msgpack") && { codec: msgpackCodec }) });
	told = [];
	named = new Set();
	client.on((event) => {
		if (["notice", "history", "conversation"].includes(event.type)) told.push(event.frame);
	});
	client.start();
}

function held(message) {
	return {
		state: message.state,
		text: message.text,
		reasoning: message.reasoning,
		tool_calls: message.toolCalls.map(({ index, ...call }) => call),
		seq: message.cursor,
		attempt: message.attempt,
		finish_reason: message.end?.finish_reason,
		partial: message.partial,
		error_code: message.error?.code,
	};
}

function report() {
	const messages = Object.fromEntries([...client.session.messages].map(([id, message]) => [id, held(message)]));
	const conversations = Object.fromEntries([...named].map((name) => [name, client.session.subscribed(name) ?? null]));
	return { messages, told, conversations, connections: client.status.connections, tokens: asked };
}

const instructions = {
	begin,
	report,
	end: () => client.close(),
	send: ({ id, request }) => client.send({ id, ...request }),
	resume: ({ id, after, text }) => client.follow(id, { ...(after !== undefined && { after, text }) }),
	cancel: ({ id }) => client.cancel(id),
	detach: ({ id }) => client.detach(id),
	retry: ({ id }) => client.retry(id),
	forget: ({ id }) => client.forget(id),
	ping: () => client.check(),
	subscribe: ({ conversation, after }) => {
		named.add(conversation);
		client.subscribe(conversation, after);
	},
	unsubscribe: ({ conversation }) => client.unsubscribe(conversation),
	history: ({ do: _, conversation, ...page }) => client.history(conversation, page),
	conversation: ({ op, conversation, fields }) => client.conversation({ op, ...(conversation && { conversation }), ...fields }),
	again: () => {}, // The client does it by itself when the time has come.
};

for await (const line of createInterface({ input: process.stdin })) {
	const instruction = JSON.parse(line);
	let answer;
	try {
		const result = instructions[instruction.do](instruction);
		answer = instruction.do === "report" ? result : {};
	} catch (error) {
		answer = { error: String(error) };
	}
	process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
