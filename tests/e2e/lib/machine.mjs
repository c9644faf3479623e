// A machine of its own: a clean Debian in a container that systemd boots, on the lab's server network.

import { execFileSync, spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DOMAIN, SERVER } from "./net.mjs";
import { until } from "./until.mjs";

/** A Debian that nothing was installed in; `make` lays it down once. */
export const CLEAN = new URL("../../../target/clean-root", import.meta.url).pathname;

export class Machine {
  constructor(lab) {
    this.lab = lab;
    this.name = `pm${process.pid}`;
    this.dir = join(lab.dir, "machine");
    this.root = join(this.dir, "root");
    // What the machine writes lies over the clean root, in memory.
    mkdirSync(this.dir, { recursive: true });
    // Before the lab goes, which has this in it.
    process.prependOnceListener("exit", () => this.close());
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=3g", "postern-machine", this.dir]);
    for (const part of ["root", "upper", "work"]) mkdirSync(join(this.dir, part));
    const layers = `lowerdir=${CLEAN},upperdir=${join(this.dir, "upper")},workdir=${join(this.dir, "work")}`;
    execFileSync("mount", ["-t", "overlay", "overlay", "-o", layers, this.root]);
    writeFileSync(join(this.root, "etc/hosts"), `127.0.0.1 localhost\n${SERVER} ${DOMAIN}\n`);
    writeFileSync(join(this.root, "etc/hostname"), "gate\n");
  }

  async boot() {
    // A real machine lets its services close themselves in.
    const landlock = "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self";
    const args = ["-D", this.root, "-M", this.name, "--boot", "--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", landlock];
    this.process = spawn("systemd-nspawn", [...args, `--network-namespace-path=/run/netns/${this.lab.names.server}`], { stdio: ["ignore", "pipe", "pipe"] });
    this.said = "";
    for (const stream of [this.process.stdout, this.process.stderr]) stream.on("data", (text) => (this.said += text));
    await until("the machine has booted", 120_000, () => {
      if (this.process.exitCode !== null) throw new Error(`the machine ended: ${this.said}`);
      return /running|degraded/.test(this.try("systemctl", "is-system-running").said);
    });
  }

  /** The first process of the machine, as this machine numbers it. */
  get leader() {
    return execFileSync("pgrep", ["-P", String(this.process.pid)], { encoding: "utf8" }).trim().split("\n")[0];
  }

  /** Runs a command in the machine; what it prints, and how it ended. */
  try(...command) {
    try {
      const args = ["-t", this.leader, "-a", "-r", "-w", "--", "/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", ...command];
      return { status: 0, said: execFileSync("nsenter", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], maxBuffer: 1 << 26 }) };
    } catch (error) {
      return { status: error.status ?? -1, said: `${error.stdout ?? ""}${error.stderr ?? error}` };
    }
  }

  in(...command) {
    const { status, said } = this.try(...command);
    if (status !== 0) throw new Error(`${command.join(" ")}: ${status}\n${said}\n${this.try("journalctl", "-u", "postern", "-n", "50", "--no-pager").said}`);
    return said;
  }

  /** A line as somebody would type it. */
  sh(line) {
    return this.in("bash", "-euo", "pipefail", "-c", line);
  }

  /** Brings a file of this machine into that one. */
  bring(file, to) {
    mkdirSync(join(this.root, to, ".."), { recursive: true });
    cpSync(file, join(this.root, to));
  }

  has(path) {
    return existsSync(join(this.root, path));
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    this.process?.kill("SIGKILL");
    for (const path of [this.root, this.dir]) {
      // Lazily: the container's last processes may still be on their way out.
      try { execFileSync("umount", ["-l", path]); } catch { /* not mounted */ }
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}
