// WHIP publishers of other makes, a WHEP player in a browser, and the rules of RFC 9725 by hand.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { DOMAIN } from "./lib/net.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { setStage, startProgram } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 120_000 };
const WHIP = `https://${DOMAIN}/whip/v1`;
const client = (name) => new URL(`clients/${name}`, import.meta.url).pathname;
const PYTHON = new URL(".venv/bin/python", import.meta.url).pathname;
let lab, server, browser;

before(async () => {
  ({ lab, server } = await setStage());
  browser = await startChromium(lab, server, "home");
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  lab?.close();
});

/** A player in a page, as a web developer would write it: one offer, one answer. */
async function watch(token, query = "") {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`https://${DOMAIN}/`);
  const answered = await page.evaluate(
    async ({ token, query }) => {
      const pc = new RTCPeerConnection();
      window.pc = pc;
      window.ended = () => fetch(window.session, { method: "DELETE", headers: { Authorization: `Bearer ${token}` } }).then((r) => r.status);
      for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
      await pc.setLocalDescription();
      const response = await fetch(`/whep/v1${query}`, { method: "POST", headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/sdp" }, body: pc.localDescription.sdp });
      window.session = response.headers.get("Location");
      await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
      return { status: response.status, location: window.session, etag: response.headers.get("ETag"), link: response.headers.get("Link") };
    },
    { token, query },
  );
  const received = () => page.evaluate(async () => {
    const rows = [...(await window.pc.getStats()).values()].filter((r) => r.type === "inbound-rtp");
    const of = (kind, field) => rows.find((r) => r.kind === kind)?.[field] ?? 0;
    return { frames: of("video", "framesDecoded"), width: of("video", "frameWidth"), audio: of("audio", "packetsReceived") };
  });
  const plays = async (what) => {
    const before = await received();
    let now;
    await until(what, 20_000, async () => {
      now = await received();
      return now.frames > before.frames + 20 && now.audio > before.audio + 20;
    }).catch((error) => {
      throw new Error(`${error.message}\n${JSON.stringify({ before, now })}\n${[...server.metrics()].filter(([, value]) => value > 0).map((row) => row.join(" ")).join("\n")}\n${server.log.slice(-3000)}`);
    });
  };
  return { page, answered, received, plays };
}

/** A publisher in a page, as a web developer would write it. */
async function publishFromPage(token) {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`https://${DOMAIN}/`);
  const status = await page.evaluate(async (token) => {
    const pc = new RTCPeerConnection();
    window.pc = pc;
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 320, height: 240 } });
    for (const track of stream.getTracks()) pc.addTransceiver(track, { direction: "sendonly" });
    await pc.setLocalDescription();
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/sdp" };
    const response = await fetch("/whip/v1", { method: "POST", headers, body: pc.localDescription.sdp });
    window.stop = () => fetch(response.headers.get("Location"), { method: "DELETE", headers }).then((r) => r.status);
    await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
    return response.status;
  }, token);
  assert.equal(status, 201);
  return { stop: () => page.evaluate(() => window.stop()), exitCode: null, said: "" };
}

for (const [name, start, options] of [
  ["a page", publishFromPage, TEST],
  ["GStreamer, which has an RSA certificate", (token) => startProgram(lab, "/usr/bin/python3", [client("whip_gst.py"), WHIP, token, server.authority]), TEST],
  [
    "FFmpeg (PyAV), which offers passive DTLS",
    (token) => startProgram(lab, PYTHON, [client("whip_push.py"), WHIP, token]),
    // It waits at times for a packet of ours before each of its own, and then sends one or two a second.
    { ...TEST, skip: process.env.POSTERN_SCENARIOS !== "1" && "one of `make scenarios`: this release of FFmpeg stalls by itself on a busy machine" },
  ],
]) {
  test(`WHIP from ${name}: seen in a call and by WHEP players, early and late`, options, async () => {
    const room = `studio ${name}`;
    const bob = await SdkPage.open(browser, "livekit-client", "bob");
    await bob.connect(server.token(room, "bob"));
    // The player is there first: it has nothing to show yet, and needs no second offer.
    const early = await watch(server.token(room, "early"));
    const sender = await start(server.token(room, "studio"));
    await until("the publisher is in the room", 20_000, async () => {
      if (sender.exitCode !== null) throw new Error(sender.said);
      return (await bob.ask(() => [...window.room.remoteParticipants.keys()])).includes("studio");
    });
    await bob.seesAndHears().catch((error) => {
      throw new Error(`${error.message}\n${sender.said}\n${server.log.slice(-4000)}`);
    });
    await early.plays("the early player plays");
    const late = await watch(server.token(room, "late"), "?participant=studio");
    await late.plays("the late player plays");
    assert.equal((await late.received()).width, 320);
    await sender.stop();
    await until("the publisher is gone", 10_000, async () => !(await bob.ask(() => [...window.room.remoteParticipants.keys()])).includes("studio"));
    assert.equal(await late.page.evaluate(() => window.ended()), 200);
    await Promise.all([bob.close(), early.page.close(), late.page.close()]);
  });
}

/** One request by curl: { status, headers, body }. */
function request(method, path, headers, body) {
  const args = ["-sS", "-i", "--max-time", "10", "--cacert", server.authority, "-X", method, `https://${DOMAIN}${path}`];
  for (const [name, value] of Object.entries(headers)) args.push("-H", `${name}: ${value}`);
  if (body !== undefined) args.push("--data-binary", body);
  const [head, ...rest] = lab.in(lab.names.home, "curl", "--http1.1", ...args).split("\r\n\r\n");
  const [first, ...lines] = head.split("\r\n");
  const all = lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 2)]);
  return { status: Number(first.split(" ")[1]), headers: Object.fromEntries(all), links: all.filter(([name]) => name === "link").map(([, value]) => value), body: rest.join("\r\n\r\n") };
}

test("WHIP and WHEP by the letter of RFC 9725: refusals, conditions, ICE restart, end", TEST, async () => {
  const sdp = await (async () => {
    const page = await browser.newPage();
    const text = await page.evaluate(async () => {
      const pc = new RTCPeerConnection();
      const context = new AudioContext();
      pc.addTransceiver(context.createMediaStreamDestination().stream.getAudioTracks()[0], { direction: "sendonly" });
      await pc.setLocalDescription();
      return pc.localDescription.sdp;
    });
    await page.close();
    return text;
  })();
  const token = server.token("letters", "pen");
  const good = { Authorization: `Bearer ${token}`, "Content-Type": "application/sdp" };
  const rows = [
    ["no token", "POST", "/whip/v1", { "Content-Type": "application/sdp" }, sdp, 401],
    ["a wrong token", "POST", "/whip/v1", { ...good, Authorization: "Bearer a.b.c" }, sdp, 401],
    ["may not publish", "POST", "/whip/v1", { ...good, Authorization: `Bearer ${server.token("letters", "pen", "--no-publish")}` }, sdp, 403],
    ["may not subscribe", "POST", "/whep/v1", { ...good, Authorization: `Bearer ${server.token("letters", "pen", "--no-subscribe")}` }, sdp, 403],
    ["another type", "POST", "/whip/v1", { ...good, "Content-Type": "text/plain" }, sdp, 415],
    ["no SDP", "POST", "/whip/v1", good, "hello", 400],
    ["nothing to receive in it", "POST", "/whep/v1", good, sdp, 422],
    ["too long", "POST", "/whip/v1", good, `@${(writeFileSync(join(lab.dir, "long"), "a=".repeat(150_000)), join(lab.dir, "long"))}`, 413],
    ["another method", "PUT", "/whip/v1", good, sdp, 405],
    ["no such session", "DELETE", "/whip/v1/nothing", good, undefined, 404],
  ];
  for (const [name, method, path, headers, body, status] of rows) {
    const answer = request(method, path, headers, body);
    assert.equal(answer.status, status, `${name}: ${answer.body}`);
  }
  const endpoint = request("OPTIONS", "/whip/v1", {});
  assert.deepEqual([endpoint.status, endpoint.headers["accept-post"]], [200, "application/sdp"]);

  const made = request("POST", "/whip/v1", good, sdp);
  assert.equal(made.status, 201, made.body);
  assert.equal(made.headers["content-type"], "application/sdp");
  assert.match(made.headers.location, /^\/whip\/v1\/\w{20,}$/);
  assert.ok(made.links.some((l) => l.startsWith("<turns:")) && made.links.every((l) => l.includes('rel="ice-server"')), made.links.join());
  assert.match(made.body, /a=recvonly/);
  const ufrag = made.body.match(/a=ice-ufrag:(\S+)/)[1];
  assert.equal(made.headers.etag, `"${ufrag}"`);

  const theirs = sdp.match(/a=ice-ufrag:(\S+)/)[1];
  const fragment = (u, p) => `a=ice-ufrag:${u}\r\na=ice-pwd:${p}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.9 9 typ host\r\n`;
  const patch = { Authorization: good.Authorization, "Content-Type": "application/trickle-ice-sdpfrag" };
  const at = made.headers.location;
  const trickle = fragment(theirs, "p".repeat(24));
  const steps = [
    ["candidates", { ...patch, "If-Match": made.headers.etag }, trickle, 204],
    ["no condition", patch, trickle, 428],
    ["another generation", { ...patch, "If-Match": '"other"' }, trickle, 412],
    ["another type", { ...patch, "Content-Type": "application/sdp", "If-Match": made.headers.etag }, trickle, 415],
    ["no credentials", { ...patch, "If-Match": made.headers.etag }, "a=mid:0\r\n", 400],
    ["somebody else's token", { ...patch, Authorization: `Bearer ${server.token("letters", "eve")}`, "If-Match": made.headers.etag }, trickle, 404],
  ];
  for (const [name, headers, body, status] of steps) {
    assert.equal(request("PATCH", at, headers, body).status, status, name);
  }
  const restarted = request("PATCH", at, { ...patch, "If-Match": "*" }, fragment("newfrag", "n".repeat(24)));
  assert.equal(restarted.status, 200, restarted.body);
  const fresh = restarted.body.match(/a=ice-ufrag:(\S+)/)[1];
  assert.notEqual(fresh, ufrag);
  assert.equal(restarted.headers.etag, `"${fresh}"`);
  assert.match(restarted.body, /a=candidate:1 1 udp /);
  assert.equal(request("PATCH", at, { ...patch, "If-Match": made.headers.etag }, fragment("newfrag", "n".repeat(24))).status, 412, "the old generation");
  assert.equal(request("DELETE", at, { Authorization: good.Authorization }).status, 200);
  assert.equal(request("DELETE", at, { Authorization: good.Authorization }).status, 404, "it is gone");
});
