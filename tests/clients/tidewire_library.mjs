// Our own library as a package, in Node, against nodes that are killed: node tidewire_library.mjs WS,WS [json|msgpack]
import { client, Storage, say, when } from "./place.mjs";

const report = {};
const text = (content) => [{ role: "user", content }];

// The node that streams to us dies; the answer comes whole all the same.
const subject = client();
subject.start();
const answer = subject.ask({ id: "ts-kill", messages: text("script tokens=200 rate=60 unicode=1\nts-kill") });
const pieces = [];
for await (const piece of answer) {
	if (piece.replaces) pieces.length = 0;
	pieces.push(piece.text);
	if (answer.message.text.length > 100 && !report.killed) {
		report.killed = true;
		say({ kill: 0 });
	}
}
report.kill = { text: pieces.join(""), state: (await answer.done()).state, connections: subject.status.connections };
say({ restart: 0 });

// A reload in mid-answer: another client goes on from what the first one kept, and its signal stops the message.
const storage = new Storage();
const before = client({ storage });
before.start();
before.send({ id: "ts-reload", messages: text("script tokens=400 rate=80\nts-reload") });
const first = before.session.messages.get("ts-reload");
await when(before, () => first.text.length > 100);
before.close();
const kept = JSON.parse(storage.getItem("tidewire.open"))[0];
const after = client({ storage });
const second = after.attach("ts-reload");
report.reload = { kept: kept.text.length > 0 && kept.cursor > 0, sameText: second.message.text === kept.text };
after.start();
report.reload.text = (await second.done()).text;
report.reload.left = storage.getItem("tidewire.open");
after.close();

const aborted = client();
aborted.start();
const controller = new AbortController();
const running = aborted.ask({ id: "ts-abort", messages: text("script tokens=4000 rate=50\nts-abort") });
await when(aborted, () => running.message.text.length > 20);
const other = client();
other.start();
const resumed = other.attach("ts-abort", { signal: controller.signal });
await when(other, () => resumed.message.text.length > 20);
controller.abort();
report.abort = { here: (await resumed.done()).state, there: (await running.done()).state };

// Asked for while offline: sent when the connection is there, once.
const offline = client();
const waiting = offline.ask({ id: "ts-offline", messages: text("script tokens=10\nts-offline") });
offline.start();
report.offline = (await waiting.done()).text;

const refused = await other.ask({ id: "ts-kill", messages: text("something else") }).done().catch((error) => error);
report.refused = { name: refused.name, code: refused.code, retryable: refused.retryable };

for (const open of [subject, aborted, other, offline]) open.close();
say({ report });
