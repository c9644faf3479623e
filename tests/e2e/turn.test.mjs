// TURN clients of other makes against an open relay, and what a closed one tells them.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { DOMAIN, Lab, SERVER } from "./lib/net.mjs";
import { Server } from "./lib/server.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 120_000 };
const PYTHON = new URL(".venv/bin/python", import.meta.url).pathname;
const PEER_PORT = 3480;
const PATIENCE_MS = 30_000;
// For clients that wait for what never comes.
const HANGS_MS = 5_000;
const OPEN = 'peers = ["127.0.0.0/8", "::1/128"]';
let lab, server;

// Server, clients and the peer that echoes are on one host.
before(async () => {
  lab = new Lab();
  lab.in(lab.names.server, "sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0");
  const turn = `[turn]
${OPEN}
shared_secrets = ["hush"]
users = { ada = "lovelace" }
allocations_per_user = 1000
older_channel_numbers = true
`;
  server = new Server(lab, { config: turn });
  change('bind_addresses = ["0.0.0.0"]', `bind_addresses = ["127.0.0.1", "::1", "${SERVER}"]`);
  await server.start();
  lab.spawn(lab.names.server, "turnutils_peer", ["-L", "127.0.0.1", "-L", "::1", "-p", String(PEER_PORT)]);
  await until("the peer listens", 10_000, () => {
    const sockets = lab.in(lab.names.server, "ss", "-Hlun");
    return ["127.0.0.1", "[::1]"].every((address) => sockets.includes(`${address}:${PEER_PORT} `));
  });
}, { timeout: 60_000 });

after(() => lab?.close());

/** Changes the config; it holds from the next start on. */
function change(before, now) {
  const config = readFileSync(server.config, "utf8");
  assert.ok(config.includes(before), before);
  writeFileSync(server.config, config.replace(before, now));
}

/** Runs a client to its end, or stops it: { code, said }; `code` is null of one that was stopped. */
async function run(command, args, patienceMs = PATIENCE_MS) {
  const child = lab.spawn(lab.names.server, command, args, { timeout: patienceMs, killSignal: "SIGKILL" });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (said += text));
  const code = await new Promise((resolve) => child.once("close", resolve));
  return { code, said };
}

/** Two clients of coturn's with five messages each; `args` override the usual ones. */
function uclient(args, patienceMs) {
  const usual = ["-u", "probe", "-W", "hush", "-p", "3478", "-e", "127.0.0.1", "-r", String(PEER_PORT), "-m", "2", "-n", "5", "-l", "120", "-z", "20"];
  return run("turnutils_uclient", [...usual, ...args, "127.0.0.1"], patienceMs);
}

/** Every message came back. The exit code does not tell: it is 0 with losses too. */
function allCameBack(name, { code, said }) {
  const [sent, received] = said.match(/: tot_send_msgs=\d+, tot_recv_msgs=\d+/g)?.at(-1).match(/\d+/g).map(Number) ?? [];
  assert.deepEqual({ code, sent, received }, { code: 0, sent: 10, received: 10 }, `${name}: ${said.slice(-3000)}\n${server.log.slice(-3000)}`);
  assert.match(said, /Total lost packets 0 /, name);
}

/** Takes the rows four at a time: most of a client's time is waiting. */
async function each(rows, step) {
  const left = [...rows];
  const worker = async () => {
    for (let row = left.shift(); row; row = left.shift()) await step(...row);
  };
  // All of them end before the first failure is told: what goes on would disturb the next test.
  const ends = await Promise.allSettled(Array.from({ length: 4 }, worker));
  for (const { reason } of ends) if (reason) throw reason;
}

/** What `work` made grow: counters of packets, requests and drops. */
async function grown(work) {
  const read = () => new Map([...server.metrics()].filter(([name]) => /^postern_(packets_consumed|relay_packets|turn|drops)/.test(name)));
  const earlier = read();
  await work();
  return [...read()].filter(([name, value]) => value > (earlier.get(name) ?? 0)).map(([name]) => name).sort();
}

/** The server is unharmed: no session ended in a panic, and the process runs. */
function lives() {
  assert.equal(server.process.exitCode, null, server.log.slice(-3000));
  assert.equal(server.metrics().get('postern_drops_total{reason="session_panicked"}'), 0);
  assert.doesNotMatch(server.log, /panicked/);
}

test("coturn's client: every message comes back, whichever way it is sent", TEST, async () => {
  const rows = [
    ["channels over UDP", ["-X"]],
    ["Send indications", ["-X", "-s"]],
    ["TCP", ["-X", "-t"]],
    ["TLS on the edge port", ["-X", "-t", "-S", "-p", "443", "-E", server.authority]],
    ["TLS on the TURN port", ["-X", "-t", "-S", "-E", server.authority]],
    ["between allocations", ["-X", "-y", "-c"]],
    ["between allocations, over TCP", ["-X", "-y", "-c", "-t"]],
    // For an IPv4 peer the client takes an IPv4 relay, whatever -x says.
    ["an IPv6 relay", ["-x", "-c", "-e", "::1"]],
    ["an allocation of both families", ["-X", "-Z"]],
    ["DONT-FRAGMENT", ["-X", "-g"]],
    ["DONT-FRAGMENT in Send indications", ["-X", "-g", "-s"]],
    ["permissions and channels asked for again", ["-X", "-G"]],
    ["a client that disconnects and comes back", ["-X", "-B"]],
    ["padding asked for over UDP", ["-X", "-D", "-l", "121"]],
    ["padding asked for over TCP", ["-X", "-D", "-t", "-l", "121"]],
    // RFC 8016: MOBILITY-TICKET may be ignored, the client then gets none.
    ["mobility, which the server does not have", ["-X", "-M"]],
  ];
  await each(rows, async (name, args) => allCameBack(name, await uclient(args)));
  lives();
});

test("coturn's client: an IPv6 relay and the port that is reserved beside it", TEST, async () => {
  allCameBack("EVEN-PORT, RESERVATION-TOKEN", await uclient(["-x", "-e", "::1"]));
});

test("DTLS is not answered, and dropped by name", TEST, async () => {
  const names = await grown(() => each([["3478"], ["443"]], async (port) => {
    const { code, said } = await uclient(["-X", "-S", "-p", port], HANGS_MS);
    assert.ok(code === null && !said.includes("tot_recv_msgs"), `${port}: ${code}\n${said}`);
  }));
  assert.deepEqual(names, ['postern_drops_total{reason="turn_malformed"}', 'postern_drops_total{reason="unknown_tuple"}']);
  lives();
});

test("coturn's client: TCP relays are refused, and wrong requests hurt nobody", TEST, async () => {
  const rows = [
    // RFC 6062.
    ["TCP relays", ["-X", "-T", "-y", "-c"], ({ code, said }) => code > 0 && /error 442 /.test(said)],
    ["passive TCP relays", ["-X", "-T", "-P"], ({ code, said }) => code > 0 && /error 442 /.test(said)],
    // It reads answers out of step; taking one without a reservation for its last, it sends a token of zeros: 508.
    ["allocations that are abandoned at once", ["-X", "-O"], ({ code, said }) => code === 0 || /error 508 /.test(said)],
    // How these end is up to the client's dice.
    ["requests of the wrong kind", ["-X", "-N"], () => true, HANGS_MS],
    ["broken requests", ["-X", "-R"], () => true, HANGS_MS],
  ];
  await each(rows, async (name, args, isRight, patienceMs) => {
    const got = await uclient(args, patienceMs);
    assert.ok(isRight(got), `${name}: ${got.code}\n${got.said.slice(-3000)}`);
  });
  allCameBack("a good client after them", await uclient(["-X"]));
  lives();
});

// As a user of aioice writes it: an allocation, messages to the peer and back, the end.
const AIOICE = `
import asyncio, ssl, sys
from aioice.turn import create_turn_endpoint

host, port, transport, authority, peer_port = sys.argv[1:6]


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.echoes, self.lost = asyncio.Queue(), asyncio.Event()

    def datagram_received(self, data, peer):
        self.echoes.put_nowait((data, peer))

    def error_received(self, error):
        self.echoes.put_nowait(error)

    def connection_lost(self, error):
        self.lost.set()


async def main():
    tls = ssl.create_default_context(cafile=authority) if transport == "tls" else None
    kind = "udp" if transport == "udp" else "tcp"
    relay, client = await create_turn_endpoint(Client, (host, int(port)), "ada", "lovelace", ssl=tls, transport=kind)
    peer = ("127.0.0.1", int(peer_port))
    for length in [0, 1, 2, 3, 4, 1200]:
        sent = bytes([length % 251]) * length
        relay.sendto(sent, peer)
        echo = await asyncio.wait_for(client.echoes.get(), 5)
        assert echo == (sent, peer), echo
    print("echoed", flush=True)
    relay.close()
    await asyncio.wait_for(client.lost.wait(), 5)
    print("closed", flush=True)


asyncio.run(main())
`;

test("aioice: echoes over UDP, TCP and TLS, on both ports; a goodbye is answered", TEST, async () => {
  const rows = [["udp", "3478"], ["tcp", "3478"], ["tcp", "443"], ["tls", "3478"], ["tls", "443"]];
  const count = (event) => server.metrics().get(`postern_turn_allocations_total{event="${event}"}`);
  const [opened, closed] = [count("opened"), count("closed")];
  await each(rows, async (transport, port) => {
    const { code, said } = await run(PYTHON, ["-c", AIOICE, DOMAIN, port, transport, server.authority, String(PEER_PORT)]);
    assert.deepEqual({ code, said }, { code: 0, said: "echoed\nclosed\n" }, `${transport} on ${port}: ${code}\n${said}\n${server.log.slice(-3000)}`);
  });
  assert.equal(count("opened") - opened, rows.length);
  await until("all allocations are closed", 5_000, () => count("closed") - closed >= rows.length);
  lives();
});

test("what is refused: peers of a closed relay, more than the quota, the wrong secret", TEST, async () => {
  await server.stop();
  change(OPEN, 'peers = "sfu-only"');
  change("allocations_per_user = 1000", "allocations_per_user = 3");
  await server.start();
  const one = ["-X", "-m", "1", "-c"];
  const rows = [
    ["a peer by channel", [...one, "-u", "a"], /error 403 /, 'turn_refusals_total{reason="403_peer_forbidden"}'],
    ["a peer by permission", [...one, "-s", "-e", "127.0.0.2", "-u", "b"], /error 403 /, 'turn_refusals_total{reason="403_peer_forbidden"}'],
    ["another allocation", ["-X", "-y", "-c", "-u", "c"], /error 403 /, 'turn_refusals_total{reason="403_peer_forbidden"}'],
    ["a fourth allocation of one user", [...one, "-u", "c"], /error 486 /, 'turn_refusals_total{reason="486_quota_reached"}'],
    ["a pair of ports, which a closed relay has not", ["-X", "-u", "d"], /error 508 /, 'turn_refusals_total{reason="508_no_port"}'],
    ["the wrong secret", [...one, "-W", "wrong"], /Cannot complete Allocation/, 'turn_refusals_total{reason="401_unauthenticated"}'],
  ];
  for (const [name, args, wanted, counter] of rows) {
    const names = await grown(async () => {
      const { code, said } = await uclient(args);
      assert.ok(code > 0 && wanted.test(said) && !said.includes("tot_recv_msgs"), `${name}: ${code}\n${said.slice(-3000)}`);
    });
    assert.ok(names.includes(`postern_${counter}`), `${name}: ${names}`);
  }
  // The SFU's own address is permitted, and no port of it but the SFU's.
  const names = await grown(async () => {
    const drops = () => server.metrics().get('postern_drops_total{reason="turn_peer_not_sfu"}');
    const earlier = drops();
    uclient([...one, "-s", "-u", "e"]);
    await until("what the client sends is dropped", 20_000, () => drops() >= earlier + 5);
  });
  assert.ok(!names.some((name) => name.includes("relay_packets")), names.join());
  lives();
});
