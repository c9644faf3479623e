// An application's back end in the lab: the room service by livekit-server-sdk, and its webhooks.

import { createInterface } from "node:readline";
import { DOMAIN } from "./net.mjs";
import { until } from "./until.mjs";

const script = (name) => new URL(`../clients/${name}`, import.meta.url).pathname;

/** `service.createRoom({...})` and all the others; an error has the status and code that the SDK saw. */
export function startService(lab, server, url = `https://${DOMAIN}`) {
  const env = { ...process.env, NODE_EXTRA_CA_CERTS: server.authority };
  const child = lab.spawn(lab.names.home, process.execPath, [script("service.mjs"), url, "devkey", "secret"], { stdio: ["pipe", "pipe", "inherit"], env });
  const waiting = [];
  createInterface({ input: child.stdout }).on("line", (line) => waiting.shift()(JSON.parse(line)));
  return new Proxy({}, {
    get: (_, method) => method === "then" ? undefined : async (...args) => {
      const { value, error } = await new Promise((resolve) => {
        waiting.push(resolve);
        child.stdin.write(`${JSON.stringify({ method, args })}\n`);
      });
      if (error) throw Object.assign(new Error(error.message), error);
      return value;
    },
  });
}

/** The events that a receiver on the server's own host has verified, oldest first. */
export async function startHooks(lab, port) {
  const events = [];
  const child = lab.spawn(lab.names.server, process.execPath, [script("hooks.mjs"), String(port), "devkey", "secret"], { stdio: ["ignore", "pipe", "inherit"] });
  createInterface({ input: child.stdout }).on("line", (line) => events.push(JSON.parse(line)));
  await until("the webhooks' receiver listens", 10_000, () => events.length > 0);
  events.length = 0;
  return events;
}
