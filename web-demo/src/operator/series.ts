/** The samples of all nodes, summed in steps: what the plots draw. No DOM. */

/** One node's sample, as `GET /v1/operator` tells it. */
export interface Sample {
  id: string;
  node: string;
  sessions: number;
  running: number;
  chunks: number;
  refused: number;
  ended: Record<string, number>;
  outcomes: Record<string, Record<string, number>>;
  /** Tenant → messages settled, tokens, nano-dollars. */
  spent: Record<string, [number, number, number]>;
  targets: Target[];
}

export interface Target {
  name: string;
  model: string;
  state: string;
  why: string;
  retry_after_ms: number;
  share: number;
  calls: number;
  failed: number;
  slow: number;
  first_token_p95_ms: number | null;
}

export interface Step {
  /** When it began, in milliseconds of Unix time. */
  at: number;
  nodes: Set<string>;
  sessions: number;
  running: number;
  chunks: number;
  refused: number;
  done: number;
  failed: number;
  cancelled: number;
  /** US dollars that were charged in it. */
  usd: number;
  /** Target → the worst state that a node told in it. */
  states: Map<string, string>;
}

/** The better state first. */
const STATES = ["closed", "ramping", "half_open", "throttled", "open"];
const NANO = 1e9;

export class Series {
  readonly stepMs: number;
  readonly windowMs: number;
  /** The id of the last sample, to ask for later ones. */
  last: string | undefined;
  /** Node → its last sample and when it came. */
  readonly nodes = new Map<string, { sample: Sample; at: number }>();
  private samples: { at: number; sample: Sample }[] = [];

  constructor(stepMs: number, windowMs: number) {
    this.stepMs = stepMs;
    this.windowMs = windowMs;
  }

  add(samples: readonly Sample[]): void {
    for (const sample of samples) {
      const at = Number(sample.id.split("-")[0]);
      this.samples.push({ at, sample });
      this.nodes.set(sample.node, { sample, at });
      this.last = sample.id;
    }
  }

  /** Every step of the window that ends at `now`, oldest first. What is older is forgotten. */
  steps(now: number): Step[] {
    const end = Math.floor(now / this.stepMs);
    const count = Math.round(this.windowMs / this.stepMs);
    const first = end - count + 1;
    this.samples = this.samples.filter(({ at }) => at >= first * this.stepMs);
    for (const [node, { at }] of this.nodes) if (at < now - 5 * this.stepMs) this.nodes.delete(node);
    const steps = Array.from({ length: count }, (_, index) => empty((first + index) * this.stepMs));
    for (const { at, sample } of this.samples) {
      const step = steps[Math.floor(at / this.stepMs) - first];
      if (step) put(step, sample);
    }
    this.carry(steps, first);
    return steps;
  }

  /** A node that told a little late stands, in the step between, as it stood before. */
  private carry(steps: Step[], first: number): void {
    const before = new Map<string, { index: number; sample: Sample }>();
    for (const { at, sample } of this.samples) {
      const index = Math.floor(at / this.stepMs) - first;
      const known = before.get(sample.node);
      const missed = known && index === known.index + 2 ? steps[known.index + 1] : undefined;
      if (missed && known && !missed.nodes.has(sample.node)) stand(missed, known.sample);
      before.set(sample.node, { index, sample });
    }
  }

  /** What each tenant spent in the window: messages, tokens, US dollars; who spent most first. */
  spending(): { tenant: string; messages: number; tokens: number; usd: number }[] {
    const sums = new Map<string, { tenant: string; messages: number; tokens: number; usd: number }>();
    for (const { sample } of this.samples) {
      for (const [tenant, [messages, tokens, nano]] of Object.entries(sample.spent)) {
        const sum = sums.get(tenant) ?? { tenant, messages: 0, tokens: 0, usd: 0 };
        sum.messages += messages;
        sum.tokens += tokens;
        sum.usd += nano / NANO;
        sums.set(tenant, sum);
      }
    }
    return [...sums.values()].sort((a, b) => b.usd - a.usd || b.tokens - a.tokens);
  }

  /** The targets as all nodes see them: the newest word on each state, the figures of all added up. */
  targets(): Target[] {
    const found = new Map<string, Target>();
    for (const { sample } of [...this.nodes.values()].sort((a, b) => a.at - b.at)) {
      for (const target of sample.targets) {
        const before = found.get(target.name);
        found.set(target.name, {
          ...target,
          calls: target.calls + (before?.calls ?? 0),
          failed: target.failed + (before?.failed ?? 0),
          slow: target.slow + (before?.slow ?? 0),
          first_token_p95_ms: target.first_token_p95_ms ?? before?.first_token_p95_ms ?? null,
        });
      }
    }
    return [...found.values()];
  }
}

function empty(at: number): Step {
  const zero = { sessions: 0, running: 0, chunks: 0, refused: 0, done: 0, failed: 0, cancelled: 0, usd: 0 };
  return { at, nodes: new Set(), states: new Map(), ...zero };
}

/** A node that told twice within one step counts its levels once. */
function put(step: Step, sample: Sample): void {
  if (!step.nodes.has(sample.node)) stand(step, sample);
  step.chunks += sample.chunks;
  step.refused += sample.refused;
  step.done += sample.ended.done ?? 0;
  step.failed += sample.ended.failed ?? 0;
  step.cancelled += sample.ended.cancelled ?? 0;
  for (const [, , nano] of Object.values(sample.spent)) step.usd += nano / NANO;
}

function stand(step: Step, sample: Sample): void {
  step.sessions += sample.sessions;
  step.running += sample.running;
  step.nodes.add(sample.node);
  for (const { name, state } of sample.targets) {
    const before = STATES.indexOf(step.states.get(name) ?? "");
    if (STATES.indexOf(state) > before) step.states.set(name, state);
  }
}
