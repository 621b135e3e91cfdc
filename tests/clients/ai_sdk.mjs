// The AI SDK with its OpenAI-compatible provider against a server: node ai_sdk.mjs BASE_URL. Prints one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({
	name: "tidewire",
	baseURL: process.argv[2],
	apiKey: "placeholder",
	includeUsage: true,
});
const model = provider("default");
const prompt = "script tokens=60 unicode=1 reasoning=4 tool=weather";
const tools = { weather: tool({ description: "the weather", inputSchema: jsonSchema({ type: "object" }) }) };
const keyed = (key) => ({ headers: { "Idempotency-Key": key }, maxRetries: 0 });
const report = {};

const whole = await generateText({ model, prompt, tools, ...keyed("ai-1") });
report.whole = { text: whole.text, reasoning: whole.reasoningText, finish: whole.finishReason };
report.calls = whole.toolCalls.map((call) => ({ name: call.toolName, input: call.input }));
report.usage = whole.usage;

const stream = streamText({ model, prompt, tools, ...keyed("ai-1"), onError: () => {} });
report.text = "";
for await (const part of stream.textStream) report.text += part;
report.reasoning = await stream.reasoningText;
report.streamCalls = (await stream.toolCalls).map((call) => ({ name: call.toolName, input: call.input }));
report.streamUsage = await stream.usage;
report.finish = await stream.finishReason;

async function failure(options) {
	try {
		await generateText({ model, prompt, ...options });
		return null;
	} catch (error) {
		return { name: error.name, status: error.statusCode, retryable: error.isRetryable, message: error.message };
	}
}
report.mismatch = await failure({ prompt: "other", ...keyed("ai-1") });
report.unknown = await failure({ model: provider("nothing"), maxRetries: 0 });
report.upstream = await failure({ prompt: "script tokens=3 status=500", maxRetries: 0 });
const retried = await generateText({
	model,
	prompt: "script tokens=4 status=500 times=1",
	headers: { "Idempotency-Key": "ai-2" },
	maxRetries: 1,
});
report.retried = retried.text;
report.broken = null;
const cut = streamText({
	model: provider("failing"),
	prompt: "script tokens=20 cut=event",
	maxRetries: 0,
	onError: ({ error }) => {
		report.broken = String(error?.message ?? JSON.stringify(error));
	},
});
report.brokenText = "";
try {
	for await (const part of cut.textStream) report.brokenText += part;
} catch {
	// onError has it
}
console.log(JSON.stringify(report));
