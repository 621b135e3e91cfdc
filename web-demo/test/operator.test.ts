import { expect, test } from "vitest";
import { nice } from "../src/operator/plot.ts";
import { type Sample, Series } from "../src/operator/series.ts";
import { remainingAfter } from "../src/page/gauges.ts";

function sample(at: number, node: string, change: Partial<Sample> = {}): Sample {
  const zero = { sessions: 0, running: 0, chunks: 0, refused: 0, ended: {}, outcomes: {}, spent: {}, targets: [] };
  return { id: `${at}-0`, node, ...zero, ...change };
}

test("samples of all nodes add up, step by step", () => {
  const series = new Series(2000, 10_000);
  series.add([sample(2100, "a", { sessions: 2, chunks: 10 }), sample(2900, "b", { sessions: 1, chunks: 5 })]);
  series.add([sample(4100, "a", { sessions: 3, ended: { done: 2 } })]);
  const steps = series.steps(10_500);
  expect(steps.map(({ at }) => at)).toEqual([2000, 4000, 6000, 8000, 10_000]);
  expect(steps.map(({ sessions }) => sessions)).toEqual([3, 3, 0, 0, 0]);
  expect(steps[0]?.chunks).toBe(15);
  expect(steps[1]?.done).toBe(2);
  expect(steps.map(({ usd }) => usd)).toEqual([0, 0, 0, 0, 0]);
  expect(series.last).toBe("4100-0");
});

test("a node that told twice in a step counts once, and one that told late does not vanish", () => {
  const series = new Series(2000, 10_000);
  series.add([sample(2000, "a", { sessions: 4 }), sample(3999, "a", { sessions: 4 })]);
  series.add([sample(6001, "a", { sessions: 5 })]);
  expect(series.steps(10_500).map(({ sessions }) => sessions)).toEqual([4, 4, 5, 0, 0]);
});

test("customers are listed by what they spent, and nodes that fell silent go", () => {
  const series = new Series(2000, 10_000);
  series.add([sample(2000, "a", { spent: { acme: [1, 10, 5e9], small: [9, 90, 1e9] } })]);
  series.add([sample(4000, "b", { spent: { small: [1, 10, 1e9] } })]);
  series.steps(10_500);
  expect(series.spending()).toEqual([
    { tenant: "acme", messages: 1, tokens: 10, usd: 5 },
    { tenant: "small", messages: 10, tokens: 100, usd: 2 },
  ]);
  series.steps(30_000);
  expect(series.nodes.size).toBe(0);
  expect(series.spending()).toEqual([]);
});

test("a step has the cost of all and the worst state of each target", () => {
  const target = { model: "m", why: "", retry_after_ms: 0, share: 1, calls: 0, failed: 0, slow: 0 };
  const at = (state: string) => [{ ...target, name: "primary", state, first_token_p95_ms: null }];
  const series = new Series(2000, 4000);
  series.add([sample(2000, "a", { targets: at("open"), spent: { acme: [1, 10, 5e8] } })]);
  series.add([sample(2100, "b", { targets: at("closed"), spent: { small: [1, 10, 5e8] } })]);
  series.add([sample(4100, "a", { targets: at("half_open") })]);
  const steps = series.steps(4500);
  expect(steps.map(({ states }) => states.get("primary"))).toEqual(["open", "half_open"]);
  expect(steps.map(({ usd }) => usd)).toEqual([1, 0]);
});

test("scales end at round numbers", () => {
  expect([0, 0.003, 1, 1.5, 3, 7, 12, 99, 101].map(nice)).toEqual([1, 0.004, 1, 2, 4, 10, 20, 100, 200]);
});

test("a gauge refills as the server said, and no further", () => {
  const limit = { name: "tokens_per_minute", limit: 100, remaining: 40, reset_seconds: 30 };
  expect(remainingAfter(limit, 0)).toBe(40);
  expect(remainingAfter(limit, 15)).toBe(70);
  expect(remainingAfter(limit, 60)).toBe(100);
  expect(remainingAfter({ ...limit, reset_seconds: 86_400 }, 60)).toBe(40);
});
