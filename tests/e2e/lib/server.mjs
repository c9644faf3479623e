// The real binary with a real config, in the server's namespace.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DOMAIN } from "./net.mjs";
import { until } from "./until.mjs";

const BINARY = process.env.POSTERN ?? new URL("../../../target/x86_64-unknown-linux-gnu/debug/postern", import.meta.url).pathname;

export class Server {
  constructor(lab, { workers = 2, config = "" } = {}) {
    this.lab = lab;
    this.log = "";
    this.state = join(lab.dir, "state");
    this.config = join(lab.dir, "postern.toml");
    mkdirSync(this.state, { recursive: true });
    writeFileSync(
      this.config,
      `[server]
domain = "${DOMAIN}"
workers = ${workers}
drain_deadline_s = 0
runtime_dir = "${this.state}"
[network]
bind_addresses = ["0.0.0.0"]
[tls]
mode = "self-signed"
state_dir = "${this.state}"
[keys]
devkey = "secret"
[rooms]
streams_together = 1
[log]
level = "debug"
${config}`,
    );
  }

  get authority() {
    return join(this.state, "ca.pem");
  }

  async start() {
    this.process = this.lab.spawn(this.lab.names.server, BINARY, ["run", "--config", this.config]);
    this.process.stderr.on("data", (text) => (this.log += text));
    this.process.stdout.on("data", (text) => (this.log += text));
    await until("the server is ready", 20_000, () => {
      if (this.process.exitCode !== null) throw new Error(`the server ended: ${this.log}`);
      return this.get("/readyz").startsWith("ready");
    });
    this.ended = new Promise((resolve) => this.process.once("exit", (code) => resolve(code)));
  }

  signal(name) {
    process.kill(Number(readFileSync(join(this.state, "postern.pid"), "utf8")), name);
  }

  get(path) {
    try {
      return this.lab.in(this.lab.names.server, "curl", "-sS", "--max-time", "5", `http://127.0.0.1:7881${path}`);
    } catch {
      return "";
    }
  }

  /** All numbers of /metrics, by name with labels. */
  metrics() {
    const rows = this.get("/metrics").split("\n").filter((line) => line && !line.startsWith("#"));
    return new Map(rows.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
  }

  token(room, identity, ...more) {
    return execFileSync(BINARY, ["token", "--config", this.config, "--room", room, "--identity", identity, ...more], { encoding: "utf8" }).trim();
  }

  /** A command for the running server: `reload` or `drain`; what it prints. */
  command(name, ...more) {
    return execFileSync(BINARY, [name, "--config", this.config, ...more], { encoding: "utf8" });
  }

  /** Address of the page that joins by itself. */
  page(room, identity, options = {}) {
    const query = new URLSearchParams({ join: "1", room, name: identity, adaptive: "0", ...options });
    return `https://${DOMAIN}/?${query}#token=${this.token(room, identity)}`;
  }

  async stop() {
    this.signal("SIGTERM");
    return this.ended;
  }
}
