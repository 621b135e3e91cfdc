/** Requests to the server beside the socket. Every one carries the token, if there is one. */

import { preferences } from "./settings.ts";

/** A refusal of the server, or none at all (`status` 0). */
export class Refused extends Error {
  override name = "Refused";
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

/** The JSON that `path` answers with. Throws `Refused`. */
export async function ask<T>(path: string, method = "GET", body?: unknown): Promise<T> {
  const { token } = preferences;
  const headers: Record<string, string> = {};
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(path, { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) });
  } catch {
    throw new Refused(0, "unreachable");
  }
  const answer = response.status === 204 ? undefined : await response.json().catch(() => undefined);
  if (!response.ok) throw new Refused(response.status, answer?.error?.code ?? "unknown");
  return answer as T;
}
