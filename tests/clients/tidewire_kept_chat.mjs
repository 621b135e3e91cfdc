// `useChat` on chats that the server keeps, and the same conversation seen live by another device: node tidewire_kept_chat.mjs WS,WS
import { Window } from "happy-dom";

const window = new Window({ url: "http://localhost/" });
Object.assign(globalThis, { window, document: window.document });
Object.defineProperty(globalThis, "navigator", { value: window.navigator, configurable: true });
const { lastAssistantMessageIsCompleteWithToolCalls } = await import("ai");
const { TidewireChatTransport } = await import("../../web-demo/dist/ai-sdk.js");
const { Conversations } = await import("../../web-demo/dist/conversations.js");
const { chatPage } = await import("./chat_page.mjs");
const { client, connect, say, when } = await import("./place.mjs");

const sent = [];
/** A device: its own client and storage. What it asks is written down. */
function device(request) {
	const tapped = (url, subprotocol) => {
		const socket = connect(url, subprotocol);
		const { send } = socket;
		socket.send = (data) => {
			sent.push(...[JSON.parse(data)].flat().filter((frame) => frame.type === "send"));
			send.call(socket, data);
		};
		return socket;
	};
	const connection = client({ connect: tapped });
	return new TidewireChatTransport({ client: connection, conversations: true, request });
}

const CHAT = "kept-1";
const shape = ({ conversation, input, parent, messages }) => ({ conversation, input, parent, messages });
const textOf = (message) => message.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
const roles = (messages) => messages.map((message) => message.role);
const report = {};

// Another device looks on.
const watching = client();
watching.start();
const conversations = new Conversations(watching);
const shown = conversations.open(CHAT);
await shown.ready();

// Two questions: the second request does not carry the first.
const one = chatPage(device(), { id: CHAT });
await one.until(() => true);
await one.chat.sendMessage({ text: "script tokens=20\nkept-one" });
await one.chat.sendMessage({ text: "script tokens=20\nkept-two" });
report.two = { sent: sent.map(shape), roles: roles(one.chat.messages) };

// The first question again, otherwise; then another answer to it. Each is a branch.
const [question] = one.chat.messages;
await one.chat.sendMessage({ text: "script tokens=20\nkept-edited", messageId: question.id });
const edited = one.chat.messages.at(-1).id;
await one.chat.regenerate();
report.branches = { sent: sent.slice(2).map(shape), roles: roles(one.chat.messages) };
await when(watching, () => shown.entries.at(-1)?.id === one.chat.messages.at(-1).id && shown.entries.at(-1).state === "done");
report.seen = { roles: roles(shown.entries), siblings: shown.entries.map((entry) => entry.siblings?.length ?? 1) };
report.edited = shown.entries.at(-1).siblings[0] === edited;
await one.chat.sendMessage({ text: "script tokens=20\nkept-later" });
const later = one.chat.messages.at(-2);
await one.chat.sendMessage({ text: "script tokens=20\nkept-later-edited", messageId: later.id });
report.editedLater = { parent: sent.at(-1).parent === one.chat.messages.at(-3).id, roles: roles(one.chat.messages) };

// A reload in mid-answer, on a device that kept nothing; the node that streams is killed as well.
void one.chat.sendMessage({ text: "script tokens=200 rate=60\nkept-long" });
await one.until((chat) => chat.status === "streaming" && textOf(chat.messages.at(-1)).length > 60);
one.unload();
const second = device();
const loaded = await second.loadMessages(CHAT);
const two = chatPage(second, { id: CHAT, messages: loaded, resume: true });
await two.until((chat) => chat.status === "streaming");
say({ kill: 0 });
await two.until((chat) => chat.status === "ready");
say({ restart: 0 });
report.reload = { loaded: roles(loaded), roles: roles(two.chat.messages), text: textOf(two.chat.messages.at(-1)) };
report.nothing = (await second.reconnectToStream({ chatId: CHAT })) ?? "nothing runs";

// A question that is refused is not kept, so it goes along with the next one.
await two.chat.sendMessage({ text: "script tokens=5\nkept-refused" }, { body: { model: "nothing" } });
await two.chat.sendMessage({ text: "script tokens=5\nkept-after" });
report.refused = { input: sent.at(-1).input.map(({ content }) => content) };

// A title, a name, a list; both ways through the history.
await conversations.rename(CHAT, "Kept");
report.list = (await conversations.list()).conversations.map(({ conversation, title }) => [conversation, title]);
const page = await conversations.history(CHAT, { limit: 2 });
const older = await conversations.history(CHAT, { before: page.next, limit: 2 });
const newer = await conversations.history(CHAT, { after: older.newer, limit: 2 });
report.pages = newer.messages.map(({ id }) => id).join() === page.messages.map(({ id }) => id).join();
two.unload();

// A tool of the browser: only its result is sent.
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const third = device({ tools });
const calling = chatPage(third, { id: "kept-tool", sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls });
await calling.until(() => true);
void calling.chat.sendMessage({ text: "script tokens=5 tool=weather times=1\nkept-tool" });
const isCall = (part) => part.type === "tool-weather";
await calling.until((chat) => chat.messages.at(-1)?.parts.some((part) => isCall(part) && part.state === "input-available"));
await calling.until((chat) => chat.status === "ready");
const call = calling.chat.messages.at(-1).parts.find(isCall);
await calling.chat.addToolOutput({ tool: "weather", toolCallId: call.toolCallId, output: { sky: "grey" } });
await calling.until((chat) => chat.status === "streaming" || chat.status === "submitted");
await calling.until((chat) => chat.status === "ready" || chat.status === "error");
report.tool = {
	input: sent.filter((frame) => frame.conversation === "kept-tool").at(1).input.map(({ role, content }) => [role, content]),
	call: call.toolCallId === sent.filter((frame) => frame.conversation === "kept-tool").at(1).input[0].tool_call_id,
	loaded: (await third.loadMessages("kept-tool"))[1].parts.filter(isCall).map(({ state, output }) => [state, output]).at(0),
};
calling.unload();

await conversations.delete(CHAT);
await when(watching, () => shown.state === "deleted");
report.deleted = (await conversations.get(CHAT).catch((error) => error)).code;
watching.close();
say({ report });
process.exit(0);
