// The package, as a new administrator meets it: a clean Debian that systemd boots, the package, the config, a call; then a
// certificate, a reload, an upgrade, the end. Nothing surprising, and nothing left behind.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { CLEAN, Machine } from "./lib/machine.mjs";
import { DOMAIN, Lab } from "./lib/net.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { until } from "./lib/until.mjs";

const DIST = new URL("../../target/dist", import.meta.url).pathname;
const CONFIG = "/etc/postern/postern.toml";
const packed = existsSync(DIST) && readdirSync(DIST).find((name) => name.endsWith(".deb"));
const skip = (!existsSync(CLEAN) && "needs a clean root (make target/clean-root)") || (!packed && "needs a package (make dist)");
const TEST = { skip, timeout: 240_000 };
let lab, machine, browser, ada, bob;

before(async () => {
  if (skip) return;
  lab = new Lab();
  await lab.settled();
  lab.firewall("open");
  machine = new Machine(lab);
  machine.bring(join(DIST, packed), "root/postern.deb");
  await machine.boot();
}, { timeout: 150_000 });

after(async () => {
  await browser?.close();
  machine?.close();
  lab?.close();
});

const settings = () => readFileSync(join(machine.root, CONFIG), "utf8");
const token = (identity) => machine.in("postern", "token", "--config", CONFIG, "--room", "ward", "--identity", identity).trim();
const isActive = () => machine.try("systemctl", "is-active", "postern").said.trim();
const main = () => machine.sh("systemctl show -p MainPID --value postern").trim();
const events = (page) => page.ask(() => window.events.map(([event]) => event));

test("it installs, makes a key of its own, starts nothing", TEST, () => {
  machine.sh("apt-get install -y --no-install-recommends /root/postern.deb");
  assert.equal(isActive(), "inactive");
  assert.match(settings(), /^API\w{12} = "\w{44}"$/m);
  assert.equal(machine.sh(`stat -c "%U:%G %a" ${CONFIG}`).trim(), "root:postern 640");
  assert.match(machine.sh("postern run --check"), /is fine/);
  for (const path of ["/usr/share/man/man1/postern.1.gz", "/etc/postern/config.example.toml", "/usr/share/postern/postern.nft", "/usr/share/bash-completion/completions/postern"]) {
    assert.ok(machine.has(path), path);
  }
  assert.match(machine.sh("zcat /usr/share/man/man1/postern.1.gz"), /postern run/);
});

test("it is configured, started by systemd, and carries a call", TEST, async () => {
  const before = settings();
  const audit = `[audit]\ndir = "/var/log/postern"\n`;
  writeFileSync(join(machine.root, CONFIG), `${before.replace(/^domain = .*/m, `domain = "${DOMAIN}"`)}\n${audit}`);
  machine.sh("postern run --check && systemctl enable --now postern");
  assert.equal(isActive(), "active");
  const server = { authority: join(machine.root, "var/lib/postern/ca.pem") };
  browser = await startChromium(lab, server, "home");
  [ada, bob] = await Promise.all(["ada", "bob"].map((name) => SdkPage.open(browser, "livekit-client", name)));
  await Promise.all([ada, bob].map((page) => page.connect(token(page.name))));
  await Promise.all([ada, bob].map((page) => page.publishOwn()));
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  assert.match(machine.sh("curl -sS http://127.0.0.1:7881/readyz"), /^ready$/m);
  const exposure = machine.sh("systemd-analyze security --no-pager postern.service").match(/Overall exposure level for postern.service: ([\d.]+)/);
  assert.ok(Number(exposure[1]) <= 2, exposure[0]);
  // It has closed itself in: no right, a filter of its own besides systemd's, and nothing of that was refused.
  const status = machine.sh(`cat /proc/${main()}/status`);
  assert.match(status, /^CapEff:\s+0+$/m);
  assert.match(status, /^CapPrm:\s+0+$/m);
  assert.match(status, /^Seccomp:\s+2$/m);
  const log = machine.sh("journalctl --no-pager -u postern.service");
  assert.doesNotMatch(log, /could not be given up|could not be restricted|Landlock/);
});

test("a reload, and nobody in the call notices", TEST, async () => {
  writeFileSync(join(machine.root, CONFIG), settings().replace("[audit]", "[log]\nlevel = \"debug\"\n[audit]"));
  machine.sh("systemctl reload postern");
  assert.match(machine.sh("cat /run/postern/reloaded"), /applied: log.level/);
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  for (const page of [ada, bob]) assert.ok(!(await events(page)).some((event) => /reconnect|disconnected/i.test(event)));
});

test("an upgrade lets the call end and come back, and touches no setting", TEST, async () => {
  const [before, process] = [settings(), main()];
  machine.sh("dpkg -i /root/postern.deb");
  await until("another process is active", 60_000, () => isActive() === "active" && main() !== process);
  assert.equal(settings(), before);
  await Promise.all([ada.seesAndHears(60_000), bob.seesAndHears(60_000)]);
});

test("the audit log tells who was there, and forgets whom it has to", TEST, async () => {
  await Promise.all([ada.close(), bob.close()]);
  const entries = () => machine.sh("postern audit show --identity ada").trim().split("\n").filter(Boolean).map((line) => JSON.parse(line));
  await until("the end of the stay is noted", 20_000, () => entries().filter((e) => e.event === "left" && e.reason === "client_initiated").length > 0);
  const [joined] = entries();
  assert.deepEqual([joined.event, joined.room, joined.address, joined.identity], ["joined", "ward", "10.99.3.2", "ada"]);
  // One stay before the upgrade, one behind it.
  const [left] = entries().filter((e) => e.event === "left");
  assert.ok(left.bytes_up > 10_000 && left.bytes_down > 10_000 && left.seconds > 0 && left.path === "udp", JSON.stringify(left));
  assert.equal(machine.sh('stat -c "%U %a" /var/log/postern/*.jsonl | sort -u').trim(), "postern 600");
  assert.match(machine.sh("postern audit erase --identity ada"), /^\d+ entries erased$/m);
  assert.deepEqual(entries(), []);
  assert.ok(machine.sh("postern audit show --identity bob").length > 0);
});

const PAGES = ["install", "firewall", "operations", "troubleshooting", "privacy", "whip-whep", "moving-from-livekit", "moving-from-coturn"];

/** Blocks of one language in a page of the documentation. */
function blocks(page, language) {
  const text = readFileSync(new URL(`../../docs/${page}.md`, import.meta.url), "utf8");
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n([\\s\\S]*?)^\`\`\`$`, "gm"))].map((found) => found[1]);
}

test("an upgrade to what would not start leaves the running server alone", TEST, () => {
  const [before, process] = [settings(), main()];
  writeFileSync(join(machine.root, CONFIG), `${before}\n[limits]\nmesage_bytes = 5\n`);
  assert.match(machine.sh("dpkg -i /root/postern.deb 2>&1"), /did you mean `message_bytes`[\s\S]*was not restarted/);
  writeFileSync(join(machine.root, CONFIG), before);
  assert.deepEqual([isActive(), main()], ["active", process]);
});

test("what the documentation says to type works as it stands, page by page", TEST, () => {
  let commands = 0;
  for (const page of PAGES) {
    for (const block of blocks(page, "sh")) {
      machine.sh(`cd /root\n${block}`);
      commands += 1;
    }
    machine.sh("systemctl start postern");
  }
  assert.ok(commands > 30, `${commands}`);
});

test("the settings that the documentation shows are taken", TEST, () => {
  let settings = 0;
  for (const page of PAGES) {
    for (const block of blocks(page, "toml")) {
      writeFileSync(join(machine.root, "root/shown.toml"), block);
      // What a page leaves out: a key, and a certificate that is there.
      machine.sh(`POSTERN_KEYS='{ a = "${"s".repeat(32)}" }' POSTERN_TLS_MODE=self-signed postern run --check --config /root/shown.toml`);
      settings += 1;
    }
  }
  assert.ok(settings > 10, `${settings}`);
});

test("what root types follows no link that the server's user could leave", TEST, () => {
  const today = machine.sh("date -u +%F").trim();
  machine.sh("echo mine > /root/victim && chmod 600 /root/victim");
  machine.sh("runuser -u postern -- ln -sf /root/victim /run/postern/drain-within");
  machine.sh(`rm -f /var/log/postern/audit-${today}.jsonl && runuser -u postern -- ln -s /root/victim /var/log/postern/audit-${today}.jsonl`);
  machine.try("postern", "audit", "erase", "--identity", "ada");
  machine.try("postern", "drain", "--within", "1");
  assert.equal(machine.sh('cat /root/victim && stat -c "%U %a" /root/victim').trim(), "mine\nroot 600");
  machine.sh(`rm -f /root/victim /var/log/postern/audit-${today}.jsonl && systemctl restart postern`);
});

test("without the right to bind port 443 it says what is missing", TEST, () => {
  machine.sh("systemctl stop postern");
  const { status, said } = machine.try("setpriv", "--reuid=postern", "--regid=postern", "--clear-groups", "--bounding-set=-all", "postern", "run");
  machine.sh("systemctl start postern");
  assert.equal(status, 1, said);
  assert.match(said, /ports below 1024 need CAP_NET_BIND_SERVICE/);
});

test("it ends in order, and purged it leaves nothing behind", TEST, () => {
  // What the documentation has the administrator make is the administrator's.
  machine.sh("systemctl stop postern && rm -f /etc/sysctl.d/99-postern.conf");
  assert.match(machine.sh("systemctl show -p Result postern"), /Result=success/);
  machine.sh("apt-get remove -y postern");
  assert.ok(machine.has(CONFIG) && machine.has("/var/log/postern"), "what is the administrator's stays");
  machine.sh("apt-get purge -y postern");
  const left = machine.sh("find / -xdev -name '*postern*' -not -path '/root/*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/var/log/journal/*' 2>/dev/null || true").trim();
  assert.equal(left, "");
  assert.equal(machine.try("getent", "passwd", "postern").status, 2);
});

test("elsewhere the archive does the same", TEST, () => {
  const archive = readdirSync(DIST).find((name) => name.endsWith(".tar.gz"));
  machine.bring(join(DIST, archive), "root/postern.tar.gz");
  machine.sh("cd /root && tar xzf postern.tar.gz && ./postern-*/install.sh");
  assert.match(settings(), /^API\w{12} = "\w{44}"$/m);
  machine.sh("postern run --check && systemctl start postern");
  assert.equal(isActive(), "active");
  machine.sh("/root/postern-*/install.sh --purge");
  const left = machine.sh("find / -xdev -name '*postern*' -not -path '/root/*' -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null || true").trim();
  assert.equal(left, "");
});
