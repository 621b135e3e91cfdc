/** The network, the clock, the page and the storage of tests. */

import type { Clock, WebSocketLike } from "../src/client/options.ts";
import type { ClientFrame, ServerFrame, Welcome } from "../src/client/types.ts";

export class FakeClock implements Clock {
  time = 1_000_000;
  private timers = new Map<number, { at: number; callback: () => void }>();
  private next = 1;

  now(): number {
    return this.time;
  }

  setTimeout(callback: () => void, milliseconds: number): number {
    this.timers.set(this.next, { at: this.time + milliseconds, callback });
    return this.next++;
  }

  clearTimeout(timer: number): void {
    this.timers.delete(timer);
  }

  advance(milliseconds: number): void {
    const end = this.time + milliseconds;
    for (;;) {
      const due = [...this.timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = due[1].at;
      due[1].callback();
    }
    this.time = end;
  }
}

export class FakeSocket implements WebSocketLike {
  binaryType = "";
  readonly protocol = "tidewire.v1.json";
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  sent: ClientFrame[] = [];
  closed = false;

  send(data: string): void {
    const value = JSON.parse(data);
    this.sent.push(...(Array.isArray(value) ? value : [value]));
  }

  close(): void {
    this.closed = true;
  }

  open(): void {
    this.onopen?.(undefined as never);
  }

  say(...frames: ServerFrame[]): void {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  welcome(resumed: { id: string; state: string; seq: number }[] = [], more: Partial<Welcome> = {}): void {
    this.open();
    this.say({
      ...{ type: "welcome", session: "s", user: "u", tier: "free", heartbeat_seconds: 20, max_frame_bytes: 1 << 20 },
      ...{ resumed, active: [], server_time: 0 },
      ...more,
    } as ServerFrame);
  }

  pong(): void {
    const ping = this.sent.findLast((frame) => frame.type === "ping");
    this.say({ type: "pong", nonce: ping?.type === "ping" ? (ping.nonce ?? 0) : 0, open: [] });
  }

  types(): string[] {
    return this.sent.map((frame) => frame.type);
  }
}

export class FakePage {
  visibilityState = "visible";
  private listeners = new Map<string, () => void>();

  addEventListener(type: string, listener: () => void): void {
    this.listeners.set(type, listener);
  }

  removeEventListener(type: string): void {
    this.listeners.delete(type);
  }

  fire(type: string): void {
    this.listeners.get(type)?.();
  }
}

export class FakeStorage {
  readonly data = new Map<string, string>();
  getItem = (key: string): string | null => this.data.get(key) ?? null;
  setItem = (key: string, value: string): void => void this.data.set(key, value);
  removeItem = (key: string): void => void this.data.delete(key);
}
