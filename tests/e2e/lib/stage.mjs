// What files of tests begin with: a network, and the server in it.

import { Lab } from "./net.mjs";
import { Server } from "./server.mjs";

/** A lab with a running server of two workers; every place may reach all of it. */
export async function setStage(options = {}) {
  const lab = new Lab();
  await lab.settled();
  const server = new Server(lab, { workers: 2, ...options });
  await server.start();
  lab.firewall("open");
  return { lab, server };
}

/** Starts somebody's program in the office; what it prints gathers in `said`, `stop` asks it to end. */
export function startProgram(lab, command, args, env = {}) {
  const child = lab.spawn(lab.names.office, command, args, { env: { ...process.env, ...env } });
  child.said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (child.said += text));
  child.ended = new Promise((resolve) => child.once("exit", resolve));
  child.stop = () => {
    for (const pid of lab.in(lab.names.office, "pgrep", "-f", args[0]).trim().split("\n")) process.kill(Number(pid), "SIGTERM");
    return child.ended;
  };
  return child;
}
