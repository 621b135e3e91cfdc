// A page with one chat of the AI SDK in React: what a browser has from load to unload. Wants `window` to be there.
import { useChat } from "@ai-sdk/react";
import { createElement } from "react";
import { createRoot } from "react-dom/client";

/** `options` are those of `useChat`; `chat` is what it returned last. */
export function chatPage(transport, options) {
	const waiting = new Set();
	const found = { chat: undefined };
	function Chat() {
		found.chat = useChat({ transport, ...options });
		for (const look of [...waiting]) look();
		return null;
	}
	const root = createRoot(document.body.appendChild(document.createElement("div")));
	root.render(createElement(Chat));
	return {
		get chat() {
			return found.chat;
		},
		until(condition) {
			return new Promise((resolve) => {
				const look = () => {
					if (!found.chat || !condition(found.chat)) return;
					waiting.delete(look);
					resolve(found.chat);
				};
				waiting.add(look);
				look();
			});
		},
		unload() {
			root.unmount();
			transport.client.close();
		},
	};
}
