/** How long to wait before the next try to connect: exponential, with full jitter. */

/** The longest that the first try after a loss waits, in milliseconds. */
export const FIRST_WAIT_MS = 250;
/** The longest that any try waits, in milliseconds. */
export const LONGEST_WAIT_MS = 30_000;

/**
 * Milliseconds to wait before try number `failures` (1 = the first after a loss).
 *
 * `random` is in [0, 1). Full jitter spreads a crowd best: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
 */
export function backoffMs(failures: number, random: number): number {
  const ceiling = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.min(failures - 1, 20));
  return Math.round(random * ceiling);
}

/** Whether a client may reconnect without changing anything after a close with `code` (`protocol.errors`). */
export function mayReconnect(code: number): boolean {
  return !((code >= 4400 && code <= 4499) || code === 1000 || code === 1007 || code === 1009);
}
