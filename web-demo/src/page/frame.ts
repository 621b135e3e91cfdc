/** Rendering at most once per animation frame, however many frames of the protocol arrive in between. */

const dirty = new Set<() => void>();
let scheduled = false;

/** Run `draw` in the next animation frame; asking twice before it draws once. */
export function draw(callback: () => void): void {
  dirty.add(callback);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const callbacks = [...dirty];
    dirty.clear();
    for (const each of callbacks) each();
  });
}
