// What the scripts about our own library share: where it is, which nodes there are, and how they talk to the test.
import { WebSocket } from "ws";
import { Client } from "../../web-demo/dist/index.js";
import { msgpackCodec } from "../../web-demo/dist/msgpack.js";

const nodes = process.argv[2].split(",");
let turn = 0;

/** Each connection goes to the next node, as behind a load balancer. */
export const connect = (_url, subprotocol) => new WebSocket(nodes[turn++ % nodes.length], subprotocol);

/** The number of the node that the newest connection goes to. */
export const node = () => (turn - 1) % nodes.length;

export function client(options = {}) {
	return new Client({ url: nodes[0], connect, ...(process.argv[3] === "msgpack" && { codec: msgpackCodec }), ...options });
}

export class Storage {
	data = new Map();
	getItem = (key) => this.data.get(key) ?? null;
	setItem = (key, value) => void this.data.set(key, value);
	removeItem = (key) => void this.data.delete(key);
}

/** One line for the test to act on. */
export const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/** Resolves once `condition` holds; looked at whenever the client tells something. */
export function when(subject, condition) {
	return new Promise((resolve) => {
		if (condition()) return resolve();
		const stop = subject.on(() => {
			if (!condition()) return;
			stop();
			resolve();
		});
	});
}
