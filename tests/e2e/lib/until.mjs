// Waiting for a condition, with a deadline that says what did not happen.

import { setTimeout as pause } from "node:timers/promises";

const LOOK_EVERY_MS = 200;

/** Looks again and again until `condition` gives something true; its value. */
export async function until(what, deadlineMs, condition) {
  const deadline = performance.now() + deadlineMs;
  let last;
  for (;;) {
    last = await condition();
    if (last) return last;
    if (performance.now() > deadline) throw new Error(`did not happen within ${deadlineMs} ms: ${what}`);
    await pause(LOOK_EVERY_MS);
  }
}

/** Checks at equal steps over a stretch of time; what `step` returns is handed to the next one. */
export async function over(totalMs, steps, step) {
  let before;
  for (let i = 0; i <= steps; i += 1) {
    before = await step(before, i);
    if (i < steps) await pause(totalMs / steps);
  }
}
