// Unmodified browsers with the embedded page, each inside a namespace, trusting the test's own authority.

import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { chromium } from "playwright-core";
import puppeteer from "puppeteer-core";
import { until } from "./until.mjs";

const CHROMIUM = "/usr/bin/chromium";
const FIREFOX = "/usr/bin/firefox-esr";
const ARGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--disable-quic",
  "--autoplay-policy=no-user-gesture-required",
];

/** A home directory whose certificate store trusts the authority. */
function trustingHome(lab, authority) {
  const home = join(lab.dir, "home");
  const store = join(home, ".pki/nssdb");
  mkdirSync(store, { recursive: true });
  trust(store, authority);
  return home;
}

/** Makes a certificate store that trusts the authority. */
function trust(store, authority) {
  execFileSync("certutil", ["-N", "--empty-password", "-d", `sql:${store}`]);
  execFileSync("certutil", ["-A", "-n", "postern", "-t", "C,,", "-i", authority, "-d", `sql:${store}`]);
}

let home, sound;

/** A voice for the fake microphone: bursts of a few tones, loud enough to count as speech. Its own beep is too short. */
function voice(lab) {
  const rate = 48_000;
  const samples = new Int16Array(rate * 4);
  for (let i = 0; i < samples.length; i += 1) {
    const t = i / rate;
    const loudness = 0.5 * (0.6 + 0.4 * Math.sin(2 * Math.PI * 3 * t)) * (t % 2 < 1.4 ? 1 : 0.02);
    const tones = Math.sin(2 * Math.PI * (180 + 40 * Math.sin(5 * t)) * t) + 0.5 * Math.sin(2 * Math.PI * 740 * t) + 0.3 * Math.sin(2 * Math.PI * 1900 * t);
    samples[i] = (loudness * tones * 32_767) / 1.8;
  }
  const head = Buffer.alloc(44);
  head.write("RIFF", 0);
  head.writeUInt32LE(36 + samples.byteLength, 4);
  head.write("WAVEfmt ", 8);
  for (const [value, at, bytes] of [[16, 16, 4], [1, 20, 2], [1, 22, 2], [rate, 24, 4], [rate * 2, 28, 4], [2, 32, 2], [16, 34, 2]]) head.writeUIntLE(value, at, bytes);
  head.write("data", 36);
  head.writeUInt32LE(samples.byteLength, 40);
  const file = join(lab.dir, "voice.wav");
  writeFileSync(file, Buffer.concat([head, Buffer.from(samples.buffer)]));
  return file;
}

function options(lab, server, place, args) {
  home ??= trustingHome(lab, server.authority);
  sound ??= voice(lab);
  return {
    executablePath: lab.wrapper(lab.names[place], CHROMIUM),
    headless: true,
    args: [...ARGS, `--use-file-for-fake-audio-capture=${sound}`, ...args],
    env: { ...process.env, HOME: home },
  };
}

export async function startChromium(lab, server, place, args = []) {
  return chromium.launch(options(lab, server, place, args));
}

/** A browser that can be killed: { browser, kill }. */
export async function startMortalChromium(lab, server, place) {
  const host = await chromium.launchServer(options(lab, server, place, []));
  return { browser: await chromium.connect(host.wsEndpoint()), kill: () => host.process().kill("SIGKILL") };
}

/**
 * Firefox listens for its driver on the namespace's own loopback: a bridge carries each connection in there. Both sides
 * use one port number, because Firefox checks the Host header.
 */
export async function startFirefox(lab, server, place) {
  let port;
  const bridge = createServer((socket) => {
    const carry = `const s=require("net").connect(${port},"127.0.0.1");s.on("error",()=>process.exit());process.stdin.pipe(s);s.pipe(process.stdout)`;
    const inside = spawn("ip", ["netns", "exec", lab.names[place], process.execPath, "-e", carry], { stdio: ["pipe", "pipe", "inherit"] });
    socket.pipe(inside.stdin);
    inside.stdout.pipe(socket);
    for (const end of [socket, inside.stdin, inside.stdout]) end.on("error", () => inside.kill());
    socket.on("close", () => inside.kill());
  });
  await new Promise((resolve) => bridge.listen(0, "127.0.0.1", resolve));
  port = bridge.address().port;
  const profile = mkdtempSync(join(lab.dir, "firefox-"));
  const prefs = {
    "media.navigator.streams.fake": true,
    "media.navigator.permission.disabled": true,
    "media.autoplay.default": 0,
    "media.peerconnection.ice.obfuscate_host_addresses": false,
    "browser.shell.checkDefaultBrowser": false,
    "datareporting.policy.dataSubmissionEnabled": false,
  };
  trust(profile, server.authority);
  writeFileSync(join(profile, "user.js"), Object.entries(prefs).map(([k, v]) => `user_pref(${JSON.stringify(k)}, ${JSON.stringify(v)});\n`).join(""));
  const args = ["--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", String(port)];
  const firefox = lab.spawn(lab.names[place], FIREFOX, args, { env: { ...process.env, HOME: profile } });
  let said = "";
  for (const stream of [firefox.stdout, firefox.stderr]) stream.on("data", (text) => (said += text));
  await until("Firefox listens", 30_000, () => said.includes("WebDriver BiDi listening"));
  const browserWSEndpoint = `ws://127.0.0.1:${port}/session`;
  const browser = await puppeteer.connect({ browserWSEndpoint, protocol: "webDriverBiDi", acceptInsecureCerts: true }).catch((error) => {
    throw new Error(`Firefox is not driven: ${error?.message ?? error}\n${said}`);
  });
  return {
    newPage: () => browser.newPage(),
    close: async () => {
      await browser.disconnect();
      firefox.kill("SIGKILL");
      bridge.close();
    },
  };
}

/** One participant: a page that has joined. */
export class Participant {
  constructor(page, name, server) {
    this.page = page;
    this.name = name;
    this.server = server;
    this.loggedBefore = server.log.length;
    this.said = [];
    const started = performance.now();
    const say = (what) => this.said.push(`${((performance.now() - started) / 1000).toFixed(2)} s ${what}`);
    page.on("pageerror", (error) => say(`error: ${error}`));
    page.on("console", (message) => say(`console: ${message.text()}`));
    page.on("requestfailed", (request) => say(`failed: ${request.url().split("?")[0]} ${request.failure?.()?.errorText}`));
    page.on("requestfinished", (request) => say(`loaded: ${request.url().split("?")[0]}`));
    page.on("crash", () => say("crashed"));
    page.on("websocket", (socket) => {
      say("WebSocket made");
      socket.on("framereceived", ({ payload }) => say(`WebSocket: ${payload.length} bytes received`));
      socket.on("framesent", ({ payload }) => say(`WebSocket: ${payload.length} bytes sent`));
      socket.on("socketerror", (error) => say(`WebSocket: ${error}`));
      socket.on("close", () => say("WebSocket closed"));
    });
  }

  static async join(browser, server, room, name, options = {}) {
    const page = browser.newContext ? await (await browser.newContext()).newPage() : await browser.newPage();
    const one = new Participant(page, name, server);
    try {
      await page.goto(server.page(room, name, options));
      await until(`${name} is connected`, 30_000, async () => {
        const { state, trouble } = await one.ask(() => ({
          state: window.postern?.room.state,
          trouble: document.querySelector("#trouble").hidden ? "" : document.querySelector("#trouble").textContent,
        }));
        if (trouble) throw new Error(`${name}: ${trouble}`);
        return state === "connected";
      });
    } catch (error) {
      throw one.withWhatWasSaid(error);
    }
    return one;
  }

  /** What both sides said is all that is left of a race. */
  withWhatWasSaid(error, more = "") {
    return new Error(`${error.message}\n${more}\n== the page of ${this.name}\n${this.said.join("\n")}\n== the server\n${this.server.log.slice(this.loggedBefore)}`);
  }

  ask(fn, argument) {
    return this.page.evaluate(fn, argument);
  }

  /** Sum of decoded frames and of received audio packets over the streams of those who are there. */
  received() {
    return this.ask(async () => {
      const here = [...window.postern.room.remoteParticipants.values()].flatMap((p) => [...p.trackPublications.values()]);
      const tracks = new Set(here.map((publication) => publication.track?.mediaStreamTrack.id));
      const rows = (await window.postern.stats()).filter((row) => row.type === "inbound-rtp" && tracks.has(row.trackIdentifier));
      const sum = (kind, field) => rows.filter((r) => r.kind === kind).reduce((total, r) => total + (r[field] ?? 0), 0);
      return {
        frames: sum("video", "framesDecoded"),
        audio: sum("audio", "packetsReceived"),
        width: Math.max(0, ...rows.filter((r) => r.kind === "video").map((r) => r.frameWidth ?? 0)),
        freezes: sum("video", "freezeCount"),
        videos: rows.filter((r) => r.kind === "video" && r.framesDecoded > 0).length,
      };
    });
  }

  /** Decoded frames or received audio packets of each stream. */
  streams() {
    return this.ask(async () => {
      const rows = (await window.postern.stats()).filter((row) => row.type === "inbound-rtp");
      return rows.map((r) => ({ id: r.id, kind: r.kind, count: (r.kind === "video" ? r.framesDecoded : r.packetsReceived) ?? 0 }));
    });
  }

  /**
   * Watches the picture for a while: the longest time without a new decoded frame, and what was lost, repaired and asked
   * for, on the way in and on the way out.
   */
  watch(totalMs) {
    return this.ask(async (totalMs) => {
      const read = async () => {
        const rows = await window.postern.stats();
        const sum = (type, field) => rows.filter((r) => r.type === type && r.kind === "video").reduce((total, r) => total + (r[field] ?? 0), 0);
        const inbound = (field) => sum("inbound-rtp", field);
        return {
          frames: inbound("framesDecoded"),
          lost: inbound("packetsLost"),
          repaired: inbound("retransmittedPacketsReceived"),
          nacks: inbound("nackCount"),
          plis: inbound("pliCount"),
          resent: sum("outbound-rtp", "retransmittedPacketsSent"),
        };
      };
      const start = performance.now();
      const first = await read();
      let [last, lastAt, longestMs] = [first, start, 0];
      while (performance.now() - start < totalMs) {
        await new Promise((resolve) => setTimeout(resolve, 50));
        const next = await read();
        const now = performance.now();
        if (next.frames > last.frames) lastAt = now;
        else longestMs = Math.max(longestMs, now - lastAt);
        last = next;
      }
      const grown = Object.fromEntries(Object.keys(first).map((key) => [key, last[key] - first[key]]));
      return { ...grown, longestMs: Math.round(longestMs) };
    }, totalMs);
  }

  /** The selected pair: "udp", "tcp", "relay/udp", "relay/tcp", "relay/tls". */
  path() {
    return this.ask(async () => {
      const rows = await window.postern.stats();
      const byId = new Map(rows.map((row) => [row.id, row]));
      const transport = rows.find((row) => row.type === "transport" && row.selectedCandidatePairId);
      const pair = byId.get(transport?.selectedCandidatePairId) ?? rows.find((row) => row.type === "candidate-pair" && row.selected);
      const local = byId.get(pair?.localCandidateId);
      return local?.candidateType === "relay" ? `relay/${local.relayProtocol}` : local?.protocol;
    });
  }

  others() {
    return this.ask(() => [...window.postern.room.remoteParticipants.keys()]);
  }

  /** Waits until frames of `videos` others are decoded and audio arrives. */
  async seesAndHears(videos = 1, withinMs = 30_000) {
    try {
      await until(`${this.name} sees ${videos} and hears them`, withinMs, async () => {
        const got = await this.received();
        return got.videos >= videos && got.frames > 10 && got.audio > 10;
      });
    } catch (error) {
      const rows = await this.ask(async () => (await window.postern.stats()).filter((row) => /^(inbound|outbound)-rtp$/.test(row.type)));
      const here = await this.ask(() => [...window.postern.room.remoteParticipants.values()].map((p) => [p.identity, ...[...p.trackPublications.values()].map((t) => `${t.trackSid} ${t.kind} ${t.isSubscribed} ${t.track?.mediaStreamTrack.id}`)]));
      const metrics = [...this.server.metrics()].map(([name, value]) => `${name} ${value}`).join("\n");
      throw this.withWhatWasSaid(error, `${JSON.stringify({ here, rows }, undefined, 1)}\n${metrics}`);
    }
  }

  async leave() {
    await this.ask(() => window.postern.room.disconnect());
    await this.page.close();
  }
}
