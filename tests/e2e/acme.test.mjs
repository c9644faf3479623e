// Certificates that the server orders itself, from Let's Encrypt's own test server (Pebble, built with Go).

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { DOMAIN, Lab } from "./lib/net.mjs";
import { Server } from "./lib/server.mjs";
import { until } from "./lib/until.mjs";

const PEBBLE = new URL("../../target/pebble/pebble", import.meta.url).pathname;
const MISSING = !existsSync(PEBBLE) && "needs Go, with which `make e2e` builds the certificate authority";

/** Starts an authority on the server's own host; its certificates live for so long. */
async function startAuthority(lab, lifetimeS) {
  const file = (name) => join(lab.dir, name);
  execFileSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=pebble", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", file("pebble.key"), "-out", file("pebble.pem")], { stdio: "ignore" });
  const pebble = {
    listenAddress: "127.0.0.1:14000",
    managementListenAddress: "127.0.0.1:15000",
    certificate: file("pebble.pem"),
    privateKey: file("pebble.key"),
    httpPort: 80,
    tlsPort: 443,
    ocspResponderURL: "",
    externalAccountBindingRequired: false,
    profiles: { default: { description: "short", validityPeriod: lifetimeS } },
  };
  writeFileSync(file("pebble.json"), JSON.stringify({ pebble }));
  const authority = lab.spawn(lab.names.server, PEBBLE, ["-config", file("pebble.json")], { env: { ...process.env, PEBBLE_VA_NOSLEEP: "1" } });
  authority.said = "";
  for (const stream of [authority.stdout, authority.stderr]) stream.on("data", (text) => (authority.said += text));
  const root = () => lab.in(lab.names.server, "sh", "-c", `curl -s --cacert ${file("pebble.pem")} https://127.0.0.1:15000/roots/0 || true`);
  await until("the authority is up", 20_000, () => root().includes("BEGIN CERTIFICATE"));
  writeFileSync(file("root.pem"), root());
  return authority;
}

for (const [challenge, ports] of [["tls-alpn-01", "[443]"], ["http-01", "[443, 80]"]]) {
  test(`a certificate is ordered by ${challenge}, kept over a restart and renewed before it ends`, { timeout: 120_000, skip: MISSING }, async () => {
    const lab = new Lab();
    try {
      const lifetimeS = 60;
      const authority = await startAuthority(lab, lifetimeS);
      const server = new Server(lab);
      const config = readFileSync(server.config, "utf8")
        .replace('mode = "self-signed"', `mode = "acme"\nacme_directory = "https://127.0.0.1:14000/dir"\nacme_ca_file = "${join(lab.dir, "pebble.pem")}"\nacme_challenge = "${challenge}"\nacme_contact = ["admin@example.eu"]`)
        .replace("[tls]", `edge_tcp_ports = ${ports}\n[tls]`);
      writeFileSync(server.config, config);
      await server.start();
      // What a client at home that trusts the authority's root is shown: serial number and end, or nothing.
      const shown = () => {
        const script = `echo | openssl s_client -connect ${DOMAIN}:443 -servername ${DOMAIN} -CAfile ${join(lab.dir, "root.pem")} -verify_return_error 2>/dev/null | openssl x509 -noout -serial -enddate 2>/dev/null || true`;
        return lab.in(lab.names.home, "sh", "-c", script).trim();
      };
      await until("a certificate is shown that clients trust", 30_000, () => shown() !== "").catch((error) => {
        throw new Error(`${error.message}\n${server.log.slice(-3000)}\n${authority.said.slice(-3000)}`);
      });
      const first = shown();
      assert.equal(lab.in(lab.names.home, "curl", "-sS", "--cacert", join(lab.dir, "root.pem"), "-o", "/dev/null", "-w", "%{http_code}", `https://${DOMAIN}/`), "200");
      if (challenge === "http-01") {
        assert.match(lab.in(lab.names.home, "curl", "-sS", "-i", `http://${DOMAIN}/.well-known/acme-challenge/strange`), /^HTTP\/1.1 404/);
        assert.match(lab.in(lab.names.home, "curl", "-sS", "-i", `http://${DOMAIN}/`), /^HTTP\/1.1 308/);
      }
      // The next start shows it again and orders nothing.
      const orders = () => authority.said.match(/new-order|newOrder|Added order/gi)?.length ?? 0;
      const before = orders();
      assert.ok(before > 0, authority.said.slice(-2000));
      await server.stop();
      await server.start();
      assert.equal(shown(), first);
      assert.equal(orders(), before);
      // A third of its life before the end there is another one.
      await until("it is renewed", lifetimeS * 1000, () => ![first, ""].includes(shown()));
      const expires = Date.parse(shown().match(/notAfter=(.*)/)[1]) / 1000;
      await until("the expiry that alerts look at is the new one's", 5_000, () => server.metrics().get("postern_certificate_expiry_timestamp_seconds") === expires);
      await server.stop();
      assert.doesNotMatch(server.log, /could not be ordered/);
    } finally {
      lab.close();
    }
  });
}
