/** Message ids: UUID version 7 (RFC 9562), so that they sort by the time they were made. */

/** Milliseconds since 1970 and 10 random bytes → a UUIDv7. */
export function uuid7From(milliseconds: number, random: Uint8Array): string {
  const time = milliseconds.toString(16).padStart(12, "0");
  const bytes = Array.from(random);
  bytes[0] = ((bytes[0] as number) & 0x0f) | 0x70;
  bytes[2] = ((bytes[2] as number) & 0x3f) | 0x80;
  const rest = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${time.slice(0, 8)}-${time.slice(8)}-${rest.slice(0, 4)}-${rest.slice(4, 8)}-${rest.slice(8, 20)}`;
}

/** A new id. `crypto.getRandomValues` exists outside secure contexts too, unlike `crypto.randomUUID`. */
export function newId(): string {
  return uuid7From(Date.now(), crypto.getRandomValues(new Uint8Array(10)));
}
