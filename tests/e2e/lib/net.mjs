// A network of its own for one test run: namespaces with the pid in their name, a router with a real firewall.
//
//   office 10.99.1.2 ── 10.99.1.1 ┐
//                                 router ── 192.0.2.1 server
//   home   10.99.3.2 ── 10.99.3.1 ┤
//   far    10.99.4.2 ~~ 10.99.4.1 ┘   a long, lossy wire, once `far` has been called
//
// The office lies behind the firewall unless another place is named, the others do not. The server has a public address (of the documentation range):
// Chromium refuses candidates on port 443 of a private one.

import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "./until.mjs";

export const SERVER = "192.0.2.1";
export const DOMAIN = "postern.test";
export const PROXY = "10.99.1.1:8888";

const run = (command, ...args) => execFileSync(command, args, { encoding: "utf8", stdio: ["pipe", "pipe", "pipe"] });

// The rules that a bank's middlebox comes down to. Replies pass; what is opened from behind it is looked at.
const RULES = {
  // Connections are followed here too, so that they live on when the rules change.
  open: "ct state invalid accept\n accept",
  // Any TCP on 443.
  port: "ct direction reply meta l4proto tcp accept\n tcp dport 443 accept",
  // TCP on 443 whose first byte is that of a TLS handshake, and nothing else.
  tls: `ct direction reply meta l4proto tcp accept
 tcp dport 443 tcp flags & (syn|ack|rst|fin) == syn accept
 tcp dport 443 ct mark 1 accept
 tcp dport 443 @ih,0,8 0x16 ct mark set 1 accept
 tcp dport 443 meta length < 80 tcp flags & (psh) == 0 accept`,
  // Nothing: the way out is a proxy on the router.
  closed: "ct direction reply meta l4proto tcp accept",
};

// On a lossy wire the second segment of a hello may come before the first: it is not looked into, and comes again.
const OUT_OF_ORDER = "tcp dport 443 ct state established drop";

export class Lab {
  constructor() {
    const id = process.pid;
    this.names = { office: `po${id}`, home: `ph${id}`, far: `pf${id}`, router: `pr${id}`, server: `ps${id}` };
    this.dir = mkdtempSync(join(tmpdir(), `postern-e2e-${id}-`));
    this.processes = new Set();
    process.once("exit", () => this.close());
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
    const { office, home, far, router, server } = this.names;
    for (const name of [office, home, far, router, server]) {
      mkdirSync(`/etc/netns/${name}`, { recursive: true });
      writeFileSync(`/etc/netns/${name}/hosts`, `127.0.0.1 localhost\n${SERVER} ${DOMAIN}\n`);
      writeFileSync(`/etc/netns/${name}/resolv.conf`, "nameserver 127.0.0.1\n");
      run("ip", "netns", "add", name);
      // Duplicate address detection would end a second after the links are up: Chromium then aborts what it is loading.
      this.in(name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1");
      this.in(name, "ip", "link", "set", "lo", "up");
    }
    const links = [[office, "office", "10.99.1.2", "10.99.1.1"], [server, "server", SERVER, "192.0.2.2"], [home, "home", "10.99.3.2", "10.99.3.1"]];
    for (const [name, device, host, gateway] of links) {
      run("ip", "link", "add", device, "netns", router, "type", "veth", "peer", "name", "eth0", "netns", name);
      this.in(name, "ip", "addr", "add", `${host}/24`, "dev", "eth0");
      this.in(router, "ip", "addr", "add", `${gateway}/24`, "dev", device);
      this.in(name, "ip", "link", "set", "eth0", "up");
      this.in(router, "ip", "link", "set", device, "up");
      this.in(name, "ip", "route", "add", "default", "via", gateway);
    }
    this.in(router, "sysctl", "-qw", "net.ipv4.ip_forward=1");
    this.firewall("open");
  }

  /** Waits until every link has said that it is up: a browser takes later news of a link for a change of network. */
  async settled() {
    const { office, home, server } = this.names;
    await until("all links are up", 10_000, () => [office, home, server].every((name) => this.in(name, "ip", "-br", "link", "show", "eth0").includes(" UP ")));
  }

  /** Lays the wire to the far namespace: so much delay and loss each way. */
  async far(delayMs, lossPerMille) {
    const { far, router } = this.names;
    const args = [new URL("wire.py", import.meta.url).pathname, `${far}:eth0`, `${router}:far`, delayMs, lossPerMille].map(String);
    const wire = spawn("python3", args, { stdio: ["ignore", "pipe", "inherit"] });
    this.processes.add(wire);
    let said = "";
    wire.stdout.on("data", (text) => (said += text));
    await until("the wire is up", 10_000, () => said.includes("up"));
    for (const [name, device, host] of [[far, "eth0", "10.99.4.2"], [router, "far", "10.99.4.1"]]) {
      this.in(name, "ip", "addr", "add", `${host}/24`, "dev", device);
      this.in(name, "ip", "link", "set", device, "up");
    }
    this.in(far, "ip", "route", "add", "default", "via", "10.99.4.1");
  }

  /** Lets only so much pass towards a place ("100kbit"); all, without a rate. */
  narrow(place, rate) {
    const shape = rate ? ["replace", "dev", place, "root", "tbf", "rate", rate, "burst", "4kb", "latency", "500ms"] : ["del", "dev", place, "root"];
    this.in(this.names.router, "tc", "qdisc", ...shape);
  }

  /** Runs a command in a namespace and returns what it prints. */
  in(name, ...command) {
    return run("ip", "netns", "exec", name, ...command);
  }

  /** Starts a long-running command in a namespace. */
  spawn(name, command, args, options = {}) {
    const child = spawn("ip", ["netns", "exec", name, command, ...args], { stdio: ["ignore", "pipe", "pipe"], ...options });
    this.processes.add(child);
    child.once("exit", () => this.processes.delete(child));
    return child;
  }

  /** What a place may reach: "open", "port", "tls" or "closed". */
  firewall(kind, place = "office") {
    const rules = `table inet postern
delete table inet postern
table inet postern {
 chain pass {
 type filter hook forward priority 0; policy drop;
 iifname != "${place}" oifname != "${place}" accept
 ${RULES[kind]}
 ${place === "far" && kind === "tls" ? OUT_OF_ORDER : ""}
 meta l4proto tcp reject with tcp reset
 }
}`;
    const file = join(this.dir, "rules.nft");
    writeFileSync(file, rules);
    this.in(this.names.router, "nft", "-f", file);
  }

  /** An executable that starts Chromium or another program inside a namespace. */
  wrapper(name, program) {
    const file = join(this.dir, `${name}-${program.split("/").at(-1)}`);
    writeFileSync(file, `#!/bin/sh\nexec ip netns exec ${name} ${program} "$@"\n`, { mode: 0o755 });
    return file;
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    for (const child of this.processes) child.kill("SIGKILL");
    for (const name of Object.values(this.names)) {
      try {
        for (const pid of run("ip", "netns", "pids", name).split(/\s+/).filter(Boolean)) process.kill(Number(pid), "SIGKILL");
      } catch { /* gone already */ }
      try { run("ip", "netns", "del", name); } catch { /* gone already */ }
      rmSync(`/etc/netns/${name}`, { recursive: true, force: true });
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}
