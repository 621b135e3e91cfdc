/** Every text of the page, in one place. */

import type { AttemptReason, ClientErrorCode, ErrorCode } from "../client/index.ts";

/** For each code that a frame or the client gives, what people read. The compiler finds one that is missing. */
const codes: Record<ErrorCode | ClientErrorCode, string> = {
  invalid_frame: "The server did not understand the request.",
  unauthenticated: "The server does not know you. Check the token.",
  token_expired: "Your token has expired. Paste a new one in the settings.",
  forbidden: "You are not allowed to do this.",
  message_unknown: "The server no longer has this answer.",
  conversation_unknown: "The server does not know this conversation.",
  job_unknown: "The server no longer has this job.",
  job_expired: "The job’s time was over before its turn came.",
  model_not_found: "The server has no model of this name.",
  conversation_busy: "This chat is still answering, and you chose not to wait.",
  conversation_limit: "You have reached a limit of what is kept of your chats. Delete some.",
  prompt_not_found: "The server has no such prompt.",
  output_invalid: "The model’s answer did not have the form that was asked for.",
  answer_restarted: "The answer was begun anew.",
  idempotency_mismatch: "This question was already asked in another form.",
  context_length_exceeded: "This chat has grown too long for the model. Start a new one.",
  content_filter: "The provider refused this content.",
  request_too_large_for_tier: "This request is larger than your limit will ever allow.",
  quota_exceeded: "Your quota is used up for the moment.",
  rate_limited: "Too many requests in a short time.",
  too_many_messages: "Too many answers are open at once.",
  too_many_jobs: "The server keeps no more jobs for you.",
  upstream_rejected: "The model’s provider refused the request.",
  upstream_unavailable: "The model could not be reached.",
  upstream_timeout: "The model did not answer in time.",
  all_targets_failed: "No model could answer.",
  store_unavailable: "The server can’t take new questions just now.",
  draining: "The server is restarting.",
  invalid_request: "The server did not understand the request.",
  not_found: "The server has nothing there.",
  method_not_allowed: "The server does not do this there.",
  body_too_large: "This is larger than the server takes.",
  unsupported_media_type: "The server does not take this kind of content.",
  not_supported: "This server does not offer this.",
  internal: "The server had a problem.",
  client_closed: "This page has let go of the connection.",
  connection_refused: "The server does not let this page connect.",
  detached: "This answer is not followed here any more.",
  token_unavailable: "No token could be got for the server. It is tried again.",
  text_unverified: "The answer arrived damaged, again and again.",
};

/** Why another attempt follows, where no error is the reason. */
const reasons: Record<AttemptReason, string> = {
  hedged: "The model before it was silent; this one was asked too and was faster.",
  owner_lost: "The server node that was answering is gone; another one goes on.",
  retried: "It had failed and was asked for again.",
};

/** Reasons that say nothing about the target: it may well be the same. */
const sameTarget: ReadonlySet<string> = new Set<AttemptReason>(["owner_lost", "retried"]);

const known = (texts: Record<string, string>, code: string): string | undefined =>
  Object.hasOwn(texts, code) ? texts[code] : undefined;

export const strings = {
  brand: "Tidewire",
  openMenu: "Chats and menu",
  untitled: "New chat",
  elsewhere: "elsewhere",
  transcriptOf: (title: string) => `Chat: ${title}`,
  you: "You asked",
  answer: "Answer",

  chats: {
    label: "Chats",
    new: "New chat",
    search: "Search chats",
    none: "Your chats are kept by the server and are the same on all your devices.",
    notFound: "No chat has this in its title.",
    busy: "answering",
    beside: "Open beside",
    rename: "Rename",
    renameLabel: "Title of the chat",
    delete: "Delete",
  },
  confirm: {
    title: (chat: string) => `Delete “${chat}”?`,
    text: "It is erased at the server and on all your devices. What was being answered in it stops.",
    all: "Delete all your chats?",
    keep: "Keep",
    delete: "Delete",
  },
  panes: {
    close: "Close this column",
    full: (most: number) => `At most ${most} chats stand side by side.`,
  },
  branches: {
    questions: "Versions of this question",
    answers: "Versions of this answer",
    previous: "Previous version",
    next: "Next version",
    at: (number: number, of: number) => `${number}/${of}`,
  },
  edit: { label: "Edit the question", cancel: "Cancel", send: "Ask this instead" },

  empty: {
    title: "Ask. Then pull the plug.",
    text: "Every answer arrives whole, once – even if the connection doesn’t last. Start one, cut the connection, reload the page: it goes on where it was.",
    several: "Three at once",
    severalHint: "Stream three answers side by side over one socket",
  },
  suggestions: [
    { title: "Explain", text: "Explain why there are two tides a day." },
    { title: "Write", text: "Write a short story about a lighthouse keeper who talks to ships." },
    { title: "Code", text: "Write a small token bucket rate limiter in Python and explain the code." },
  ],
  threeAtOnce: [
    "Give me three facts about the Moon and the tide.",
    "Write a short poem about the sea.",
    "Explain in a long paragraph how a telegraph worked.",
  ],

  composer: {
    label: "Your question",
    placeholder: "Ask something…",
    send: "Send",
    model: "Model",
    hint: "Enter sends · Shift+Enter new line · Esc stops",
    hintBusy: "Esc stops",
    placeholderIn: (title: string) => `Ask in “${title}”…`,
    onBusy: "While an answer runs, a new question …",
    onBusyShort: "A new question",
    busy: {
      queue: "waits its turn",
      interrupt: "interrupts it",
      rollback: "replaces it",
      reject: "is refused",
    },
  },

  actions: {
    stop: "Stop",
    retry: "Retry",
    regenerate: "Regenerate",
    takeBack: "Take back",
    edit: "Edit",
    earlier: "Earlier messages",
    copy: "Copy",
    copied: "Copied",
    copyCode: "Copy code",
    jump: "Latest",
    cut: "Cut my connection",
    reconnect: "Reconnect now",
  },

  state: {
    waiting: "Sending",
    offline: "Will be sent when you’re back",
    admitting: "Sending",
    queued: "Queued",
    queuedAt: (position: number) => `Queued, number ${position}`,
    thinking: "Thinking",
    streaming: "Streaming",
    paused: "Goes on unseen",
    resuming: "Catching up",
    stopping: "Stopping",
    done: "Complete",
    failed: "Failed",
    cancelled: "Stopped",
    interrupted: "Interrupted",
    unanswered: "Not answered",
  },

  connection: {
    connecting: "Connecting…",
    connected: "Connected",
    roundTrip: (ms: number) => `${ms} ms`,
    reconnecting: "Reconnecting…",
    reconnectingIn: (seconds: number) => `Reconnecting in ${seconds} s`,
    offline: "Offline",
    stopped: "Disconnected",
    lostTitle: "Connection lost.",
    offlineTitle: "You’re offline.",
    nothingLost: "Nothing is lost.",
    back: "Connected again. Nothing was lost.",
    goesOn: (open: number) =>
      open === 1 ? "Your answer goes on at the server." : `Your ${open} answers go on at the server.`,
    closed: (code: number) => closeTexts[code] ?? `The server closed the connection (code ${code}).`,
  },

  meta: {
    tokens: (output: number) => `${output} ${output === 1 ? "token" : "tokens"}`,
    firstToken: (ms: number) => `first token ${ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`}`,
    attempts: (count: number) => (count === 1 ? "1 attempt" : `${count} attempts`),
    resumed: (times: number) => (times === 1 ? "resumed once" : `resumed ${times}×`),
    cost: (dollars: number) => (dollars === 0 ? "$0" : `$${dollars.toFixed(dollars < 0.01 ? 6 : 4)}`),
    seq: (seq: number) => `seq ${seq}`,
    prompt: (name: string, version: string) => `prompt ${name}@${version}`,
    whole: "whole",
    wholeHint: "This page found that the text has the SHA-256 that the server told",
    length: "cut at the length limit",
  },

  attempts: {
    /** What the notice above an answer says; `code` is that of the attempt's reason, if it has one. */
    notice: (target: string, code: string) =>
      sameTarget.has(code) ? strings.attempts.why(code) : `Switched to ${target}: ${strings.attempts.why(code)}`,
    /** Why an attempt follows, as a sentence. */
    why: (code: string) => known(reasons, code) ?? known(codes, code) ?? "The attempt before it came to nothing.",
  },
  reasoning: "Reasoning",
  imageAsLink: "image",

  panel: {
    label: "What the backend does",
    title: "Backend, live",
    open: "Show what the backend does",
    close: "Close the panel",
    targets: "Models behind this chat",
    quota: "What is left of your limits",
    connection: "Connection",
    cost: "Cost by feature, since this page was loaded",
    wire: "On the wire",
    roundTrips: "Round trips of the connection",
    route: (id: string, targets: string[]) => `Route “${id}”: ${targets.join(" → ")}`,
    answering: (count: number) => (count === 1 ? "answers now" : `${count} answers now`),
    light: (state: string, why: string, retryMs: number, share: number) => {
      const reason = known(strings.panel.whys, why);
      const because = reason === undefined ? "" : ` ${reason}`;
      const seconds = Math.ceil(retryMs / 1000);
      if (state === "closed") return "In use";
      if (state === "half_open") return "On trial: one call is let through";
      if (state === "ramping") return `Coming back: ${Math.round(share * 100)} % of the calls`;
      const pause = seconds > 0 ? `, tried again in ${seconds} s.` : ", tried with the next question.";
      return `${state === "throttled" ? "Rate limit of the provider" : "Left alone"}${pause}${because}`;
    },
    whys: {
      refused: "It could not be reached.",
      connect_timeout: "It could not be reached.",
      first_token_timeout: "It did not begin to answer.",
      idle_timeout: "It fell silent in mid-answer.",
      total_timeout: "It did not come to an end in time.",
      broken_stream: "It broke off in mid-answer.",
      garbled: "It answered with what is no answer.",
      empty: "It answered with nothing.",
      server_error: "It answered with errors.",
      rate_limited: "It got too many requests.",
      unauthorized: "It refuses this server’s key.",
      not_found: "It does not know the model.",
      worker_lost: "The process behind it died.",
      slow: "It was too slow.",
    } as Record<string, string>,
    limits: {
      tokens_per_minute: "Tokens a minute",
      requests_per_minute: "Questions a minute",
      concurrent_messages: "Answers at once",
      monthly_usd: "Money this month",
      tenant_tokens_per_minute: "Tokens a minute, all users",
      tenant_requests_per_minute: "Questions a minute, all users",
      tenant_concurrent_messages: "Answers at once, all users",
      tenant_monthly_usd: "Money this month, all users",
    } as Record<string, string>,
    left: (name: string, left: number, limit: number) =>
      name.endsWith("monthly_usd")
        ? `$${left.toFixed(4)} of $${limit}`
        : `${Math.floor(left).toLocaleString()} of ${limit.toLocaleString()}`,
    facts: {
      roundTrip: "Round trip",
      node: "Server node",
      user: "You",
      connections: "Connections",
      open: "Open answers",
      resumes: "Resumes",
    },
    books: {
      caption: "Answers, tokens and cost by feature",
      feature: "Feature",
      answers: "Answers",
      tokens: "Tokens",
      cost: "Cost",
      all: "Together",
      features: {
        chat: "Chat",
        parallel: "Side by side",
        regenerate: "Regenerated",
        edit: "Edited",
        elsewhere: "Asked elsewhere",
      } as Record<string, string>,
    },
    happenings: {
      label: "What happened, newest first",
      accepted: "accepted",
      attached: "known already: attached, nothing is generated twice",
      attempt: (number: number, target: string, mode: string, why: string) => {
        if (number === 1) return `attempt 1 at ${target}`;
        const how = mode === "continue" ? "goes on with the text" : mode === "restart" ? "starts over" : "begins";
        return `attempt ${number} at ${target} ${how}. ${why}`;
      },
      first: (seq: number) => `first text, seq ${seq}`,
      resyncing: (reason: string) => `asks for what is missing (${reason})`,
      replaced: (seq: number) => `told anew, up to seq ${seq}`,
      stalled: (why: string) => `resumes later. ${why}`,
      welcomed: (resumed: number) =>
        resumed > 0 ? `connected, ${resumed} ${resumed === 1 ? "answer" : "answers"} resumed` : "connected",
      resumed: (seq: number) => `resumed; the journal stands at seq ${seq}`,
      goaway: "this node is being replaced: reconnecting elsewhere",
      lost: "connection lost",
      done: (seq: number, tokens: number, cost: number | undefined) =>
        `whole at seq ${seq}: ${strings.meta.tokens(tokens)}${cost === undefined ? "" : `, ${strings.meta.cost(cost)}`}`,
      cancelled: "stopped",
    },
  },

  controls: {
    label: "Try to break it",
    cutHint: "As a tunnel would: for a moment nothing gets through.",
    breakPrimary: "Break the primary model",
    breakPrimaryHint: "It falls silent in mid-answer; the next one goes on.",
    mendPrimary: "Mend the primary model",
    mendPrimaryHint: "After its pause it is tried with one question.",
    kill: "Kill the server node",
    killHint: "The process that serves you dies; another takes over.",
    twice: "Send it twice",
    twiceHint: "One id over two connections: one answer, one bill.",
    device: "Open on a second device",
    deviceHint: "It shows this chat, live, over its own connection.",
    broke: "the primary model was broken",
    mended: "the primary model was mended",
    killed: "the node that serves you was killed",
    notConnected: "Not connected just now.",
    refused: "The server did not do it.",
    sending: "Sent over two connections …",
    sentTwice: (id: string, attempts: string[], tokens: number, cost: string) =>
      `Sent twice, answered once: the server attached the second to the first, and has one message under the id of both, …${id.slice(-8)}. It called ${attempts.length === 1 ? "a model once" : `models ${attempts.length} times`} (${attempts.join(", ")}): ${tokens} tokens, one bill of ${cost}.`,
    notTheSame: "What the two got and what the server has are not the same.",
    notTold: "The server does not tell what it has of the two.",
    proof: "What the server has",
  },

  operator: {
    title: "Operator",
    sessions: "Live sessions",
    running: "Running messages",
    tokens: "Tokens a second",
    ended: "Messages ended a second",
    done: "whole",
    failed: "failed",
    cancelled: "stopped",
    refused: "Quota refusals a second",
    cost: "Cost a minute",
    dollars: (value: number) => `$${Number(value.toPrecision(2))}`,
    targets: "Targets and their breakers",
    strip: (target: string, percent: number) =>
      percent === 0
        ? `${target} was in use all the time`
        : `${target} was not, or not fully, in use for ${percent} % of the time`,
    nodes: "Nodes",
    spending: "Cost by customer, last five minutes",
    columns: ["Customer", "Messages", "Tokens", "Cost"],
    window: (calls: number, failed: number, slow: number, p95: number | null) =>
      `${calls} calls, ${failed} failed, ${slow} slow${p95 === null ? "" : `, first token ${p95} ms (p95)`}`,
    from: "−5 min",
    now: "now",
    told: (title: string, words: string[]) => `${title}. ${words.join(", ")}`,
    line: (name: string, value: string) => `${name}: ${value}`,
    node: (sessions: number, running: number) =>
      `${sessions} ${sessions === 1 ? "session" : "sessions"}, ${running} running`,
    status: (nodes: number) => (nodes === 1 ? "1 node, live" : `${nodes} nodes, live`),
    refusedHere: "Only operators may see this.",
    lacksScope: "The token lacks the scope `operator`. ",
    unreachable: "The server can’t be reached; the figures stand still.",
  },

  devices: {
    title: "Open on a second device",
    sameMachine:
      "This demo lets only this machine in: open the link in another window. For a phone, start `tidewire demo --lan`.",
    scan: (minutes: number) => `Scan it, or open the link there. It works once, within ${minutes} minutes.`,
    code: "The link as a code to scan",
    copy: "Copy link",
    close: "Done",
    failed: "The server gave no link.",
  },

  settings: {
    open: "Settings",
    theme: "Theme",
    themes: { system: "System", light: "Light", dark: "Dark" },
    codec: "Wire format",
    codecs: { json: "JSON", msgpack: "msgpack" },
    clear: "Delete all chats",
    session: "Session",
    user: (user: string, tier: string) => `${user} · ${tier}`,
    connections: (count: number) => (count === 1 ? "1 connection" : `${count} connections`),
  },

  token: {
    title: "This server wants a token",
    linkUsed: "That link has been used or is too old. Ask for a new one, or paste a token. ",
    text: "Paste an API key or a token. It is kept until this tab is closed.",
    label: "Token",
    connect: "Connect",
    cancel: "Not now",
  },

  live: {
    asked: "Question sent",
    finished: (text: string) => `Answer: ${text}`,
    stopped: "Answer stopped",
    failed: "Answer failed",
    lost: "Connection lost",
    back: "Connected again",
  },

  errors: {
    unknown: "Something went wrong.",
    retryIn: (seconds: number) => `Try again in ${seconds} s.`,
    /** What people read for a code. */
    of: (code: string) => known(codes, code) ?? strings.errors.unknown,
  },
};

const closeTexts: Record<number, string> = {
  1000: "The server closed the connection.",
  1009: "A message was too large for the server.",
  4400: "The server did not understand this page. Reload it.",
  4401: "The server wants a valid token.",
  4403: "Pages of this address may not connect to the server.",
  4408: "The server waited too long for this page.",
  4429: "Too many connections are open.",
};
