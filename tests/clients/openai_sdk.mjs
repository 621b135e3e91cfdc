// The stock OpenAI SDK for Node against a server: node openai_sdk.mjs BASE_URL. Prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "placeholder", maxRetries: 0 });
const messages = [{ role: "user", content: "script tokens=60 unicode=1 tool=weather" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const keyed = (key) => ({ headers: { "Idempotency-Key": key } });
const report = {};

const whole = await client.chat.completions.create({ model: "default", messages, tools }, keyed("node-1"));
report.whole = whole.choices[0].message;
report.id = whole.id;
report.usage = whole.usage;

const stream = await client.chat.completions.create(
	{ model: "default", messages, tools, stream: true, stream_options: { include_usage: true } },
	keyed("node-1"),
);
report.text = "";
report.ids = [];
const calls = [];
for await (const chunk of stream) {
	report.ids.push(chunk.id);
	report.streamUsage = chunk.usage ?? report.streamUsage;
	const [choice] = chunk.choices;
	if (!choice) continue;
	report.text += choice.delta.content ?? "";
	for (const part of choice.delta.tool_calls ?? []) {
		calls[part.index] ??= { name: part.function.name, arguments: "" };
		calls[part.index].arguments += part.function.arguments ?? "";
	}
	report.finish = choice.finish_reason ?? report.finish;
}
report.calls = calls;

const helper = client.chat.completions.stream({ model: "default", messages, tools }, keyed("node-1"));
report.helper = (await helper.finalChatCompletion()).choices[0].message.content;

async function failure(params, options) {
	try {
		await client.chat.completions.create({ model: "default", ...params }, options);
		return null;
	} catch (error) {
		return { name: error.constructor.name, status: error.status, code: error.code, type: error.type };
	}
}
report.mismatch = await failure({ messages: [{ role: "user", content: "other" }] }, keyed("node-1"));
report.unknown = await failure({ messages, model: "nothing" });
report.invalid = await failure({ messages, n: 2 });
report.upstream = await failure({ messages: [{ role: "user", content: "script tokens=3 status=500" }] });
report.models = (await client.models.list()).data.map((model) => model.id);

const retrying = new OpenAI({ baseURL: process.argv[2], apiKey: "placeholder", maxRetries: 2 });
const again = await retrying.chat.completions.create(
	{ model: "default", messages: [{ role: "user", content: "script tokens=4 status=500 times=1" }] },
	keyed("node-2"),
);
report.retried = again.choices[0].message.content;

const broken = [];
try {
	const cut = await client.chat.completions.create({
		model: "failing",
		messages: [{ role: "user", content: "script tokens=20 cut=event" }],
		stream: true,
	});
	for await (const chunk of cut) broken.push(chunk.choices[0]?.delta.content ?? "");
} catch (error) {
	report.broken = { text: broken.join(""), name: error.constructor.name, code: error.code };
}
console.log(JSON.stringify(report));
