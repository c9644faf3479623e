// The same session, run against LiveKit's server and against ours by the same SDK: what the clients are told and what apps
// see may differ only as docs/livekit.md says. Needs Go (`make compare`).

import { SignalRequest, SignalResponse } from "@livekit/protocol";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { AccessToken } from "livekit-server-sdk";
import { startChromium } from "./lib/browsers.mjs";
import { DOMAIN, SERVER } from "./lib/net.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { startService } from "./lib/service.mjs";
import { setStage } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const LIVEKIT = new URL("../../target/livekit/server", import.meta.url).pathname;
const THEIRS = `http://${SERVER}:7880`;
const DOCUMENTED = readFileSync(new URL("../../docs/livekit.md", import.meta.url), "utf8");
let lab, server, browser;

before(async () => {
  ({ lab, server } = await setStage());
  const theirs = lab.spawn(lab.names.server, LIVEKIT, ["--keys", "devkey: secret", "--bind", "0.0.0.0", "--node-ip", SERVER, "--config-body", "rtc: {use_external_ip: false, tcp_port: 7882}\nlogging: {level: warn}"]);
  let said = "";
  for (const stream of [theirs.stdout, theirs.stderr]) stream.on("data", (text) => (said += text));
  // A page may use camera and microphone where its origin is secure.
  browser = await startChromium(lab, server, "home", [`--unsafely-treat-insecure-origin-as-secure=${THEIRS}`]);
  await until("LiveKit's server answers", 20_000, () => {
    if (theirs.exitCode !== null) throw new Error(said);
    return lab.in(lab.names.server, "sh", "-c", `curl -s http://127.0.0.1:7880/ || true`) === "OK";
  });
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  lab?.close();
});

// ---- what is written down ----------------------------------------------------------------------------------------

/** Messages whose moment is chance, or that belong to ICE. */
const CHANCE = new Set(["pingReq", "pong", "pongResp", "ping", "trickle", "speakersChanged", "connectionQuality", "streamStateUpdate", "subscribedQualityUpdate", "updateSetting"]);
const CHANCE_EVENTS = /connectionQuality|activeSpeakers|trackStreamState|activeDevice|localAudioSilence|audioPlayback|videoPlayback|mediaDevices|dcBuffer|transcription|chatMessage/i;
/** Fields that are times, counts of changes, addresses and secrets. */
const OWN = new Set(["joinedAt", "joinedAtMs", "creationTime", "creationTimeMs", "version", "serverVersion", "serverRegion", "serverInfo", "iceServers", "turnPassword", "sdp", "id", "requestId", "midToTrackId", "lastMessageSeq", "timestamp", "mid", "cid", "bitrate", "ssrc"]);

function plain(value) {
  // The order of tracks and participants tells nothing.
  const rank = (v) => (v && typeof v === "object" ? JSON.stringify(v) : "");
  if (Array.isArray(value)) return value.map(plain).sort((a, b) => (rank(a) < rank(b) ? -1 : Number(rank(a) > rank(b))));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).filter(([key]) => !OWN.has(key)).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, v]) => [key, plain(v)]));
  }
  if (typeof value !== "string") return value;
  return value.replace(/\b(PA|TR|RM|ND|DTR)_\w+/g, "$1_").replace(/^[0-9a-f]{8}-[0-9a-f-]{27}$/, "uuid").replace(/^eyJ.*/, "token");
}

/** One line for a message, or nothing. */
function line(who, direction, kind, bytes) {
  const { message } = kind.fromBinary(bytes);
  if (!message.case || CHANCE.has(message.case)) return [];
  const short = { refreshToken: "token" }[message.case] ?? message.value.toJson?.() ?? message.value;
  return [`${who} ${direction} ${message.case} ${JSON.stringify(plain(short))}`];
}

/** What has happened since it was asked last, once nothing more does: lines without repetition, sorted. */
async function since(pages) {
  const lines = new Set();
  let latest = performance.now();
  await until("all is said", 20_000, async () => {
    const before = lines.size;
    for (const page of pages) {
      const { frames, events } = await page.ask(() => ({ frames: window.frames.splice(0), events: (window.events ?? []).splice(0) }));
      for (const [direction, base64] of frames) {
        for (const text of line(page.name, direction, direction === "->" ? SignalRequest : SignalResponse, Buffer.from(base64, "base64"))) lines.add(text);
      }
      for (const [event, ...args] of events) if (!CHANCE_EVENTS.test(event)) lines.add(`${page.name} sees ${event} ${JSON.stringify(plain(args))}`);
    }
    if (lines.size > before) latest = performance.now();
    return performance.now() - latest > 1_000;
  });
  return [...lines].sort();
}

/** All signalling of a page, as it goes over its sockets. */
function tap() {
  window.frames = [];
  const note = async (direction, data) => {
    const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : (data.buffer ?? data));
    window.frames.push([direction, btoa(String.fromCharCode(...bytes))]);
  };
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...args) {
      super(...args);
      this.addEventListener("message", ({ data }) => note("<-", data));
    }
    send(data) {
      note("->", data);
      super.send(data);
    }
  };
}

// ---- what may differ ----------------------------------------------------------------------------------------------

const drops = (pattern) => (line) => (pattern.test(line) ? undefined : line);
const without = (pattern) => (line) => line.replace(pattern, "");
/** Each difference by its name in docs/livekit.md, and how it is taken out of both transcripts. */
const DIFFERENCES = {
  Codecs: without(/"enabled(Publish)?Codecs":\[.*?\],/g),
  "Track details": (line) => line.replace(/"(mimeType|rid|videoLayerMode|backupCodecPolicy)":"[^"]*",?/g, "").replace(/"(spatialLayer|repairSsrc)":\d+,?/g, "").replace(/,\}/g, "}"),
  "Path of media": (line) => (/participantAttributesChanged \[null,/.test(line) ? undefined : line.replace(/"postern.path":"[^"]*"/g, "").replace(/"colour":"green",\}/g, '"colour":"green"}').replace(/"attributes":\{\},?/g, "")),
  "Newer protocol": (line) => (/dataTrackSubscriberHandles/.test(line) ? undefined : line.replace(/"capabilities":\[[^\]]*\],?/g, "").replace(/,"sifTrailer":"[^"]*"/, "")),
  "News comes at once": (line, step) => {
    if (/<- roomUpdate (?!.*"metadata")/.test(line)) return undefined;
    // What comes within two seconds behind a full reconnect the SDK keeps to itself.
    if (/comes back/.test(step) && /sees localTrackSubscribed/.test(line)) return undefined;
    const isNews = /<- update (?!.*"tracks")|<- roomUpdate|sees participant(Connected|Active|PermissionsChanged|Disconnected)/.test(line);
    return isNews && / joins|publishes|comes back|removed/.test(step) ? undefined : line.replace(/"num(Participants|Publishers)":\d+,/g, "").replace(/,"state":"JOINED"/g, "");
  },
  "Tracks one by one": (line, step) => {
    const isAboutAnother = /^(ada|bob) /.test(step) && !line.includes(`"identity":"${step.split(" ")[0]}"`);
    return /<- update .*"tracks"/.test(line) && (isAboutAnother || /publish|comes back/.test(step)) ? undefined : line;
  },
  "Allowed subscriptions": drops(/subscriptionPermissionUpdate \{"allowed":true/),
  Publishers: without(/"isPublisher":true,/g),
  Renegotiation: drops(/mediaSectionsRequirement|(<-|->) (offer|answer) |trackSubscriptionStatusChanged .*"desired"/),
};

/** The same session without what may differ. */
function common(said) {
  const strip = (step) => (line) => Object.values(DIFFERENCES).reduce((rest, rule) => rest && rule(rest, step), line);
  return Object.fromEntries(Object.entries(said).map(([step, lines]) => [step, new Set(lines.map(strip(step)).filter(Boolean))]));
}

// ---- the session -------------------------------------------------------------------------------------------------

async function session(url, options) {
  const token = async (identity) => {
    const one = new AccessToken("devkey", "secret", { identity, name: identity, ttl: "10m" });
    one.addGrant({ roomJoin: true, room: "compare", canUpdateOwnMetadata: true });
    return one.toJwt();
  };
  const service = startService(lab, server, url);
  const open = async (name) => SdkPage.open(browser, "livekit-client", name, { url, init: tap });
  const [ada, bob] = [await open("ada"), await open("bob")];
  const both = [ada, bob];
  const said = {};
  const step = async (name, action) => {
    await action().catch((error) => {
      throw new Error(`${name}: ${error.message}\n${both.map((p) => p.said.slice(-40).join("\n")).join("\n\n")}\n${server.log.slice(-3000)}`);
    });
    said[name] = await since(both);
  };
  const reconnects = (scenario) => async () => {
    await bob.ask((scenario) => window.room.simulateScenario(scenario), scenario);
    await until(`${scenario} is over`, 20_000, async () => (await bob.events("reconnected")).length > 0 && (await bob.ask(() => window.room.state)) === "connected");
    await bob.flows(20_000);
  };
  await step("ada joins", async () => ada.connect(await token("ada"), options));
  await step("bob joins", async () => bob.connect(await token("bob"), options));
  await step("ada publishes", async () => { await ada.publish(); await bob.flows(20_000); });
  await step("bob publishes", async () => { await bob.publish(); await ada.flows(20_000); });
  await step("ada mutes", () => ada.ask(() => window.room.localParticipant.setMicrophoneEnabled(false)));
  await step("ada unmutes", () => ada.ask(() => window.room.localParticipant.setMicrophoneEnabled(true)));
  await step("ada describes herself", () => ada.ask(async () => {
    await window.room.localParticipant.setMetadata("meta");
    await window.room.localParticipant.setName("Ada");
    await window.room.localParticipant.setAttributes({ colour: "green" });
  }));
  await step("ada says something", () => ada.ask(() => window.room.localParticipant.publishData(new TextEncoder().encode("hello"), { reliable: true, topic: "t" })));
  await step("bob lets go of a picture", () => bob.ask(() => [...[...window.room.remoteParticipants.values()][0].videoTrackPublications.values()][0].setSubscribed(false)));
  await step("bob takes it again", async () => { await bob.ask(() => [...[...window.room.remoteParticipants.values()][0].videoTrackPublications.values()][0].setSubscribed(true)); await bob.flows(20_000); });
  await step("ada may not publish", () => service.updateParticipant("compare", "ada", { permission: { canPublish: false, canSubscribe: true, canPublishData: true, canUpdateMetadata: true } }));
  await step("ada may publish", () => service.updateParticipant("compare", "ada", { permission: { canPublish: true, canSubscribe: true, canPublishData: true, canUpdateMetadata: true } }));
  await step("ada publishes again", async () => { await ada.publish(); await bob.flows(20_000); });
  await step("the room is described", () => service.updateRoomMetadata("compare", "about"));
  const mute = async (source) => {
    const { tracks } = await service.getParticipant("compare", "ada");
    await service.mutePublishedTrack("compare", "ada", tracks.find((t) => t.source === source).sid, true);
  };
  await step("the service mutes", () => mute("MICROPHONE"));
  await step("ada unmutes herself", () => ada.ask(() => window.room.localParticipant.setMicrophoneEnabled(true)));
  await step("bob resumes", reconnects("signal-reconnect"));
  await step("bob comes back", reconnects("full-reconnect"));
  await step("ada is removed", async () => {
    await service.removeParticipant("compare", "ada");
    await until("ada is out", 10_000, async () => (await ada.ask(() => window.room.state)) === "disconnected");
  });
  await step("bob leaves", () => bob.ask(() => window.room.disconnect()));
  await Promise.all(both.map((p) => p.page.context().close()));
  return said;
}

for (const [name, options] of [["one peer connection", {}], ["two peer connections", { singlePeerConnection: false }]]) {
  test(`a whole session, ${name}: transcripts differ only as documented`, { timeout: 300_000 }, async (t) => {
    const ours = common(await session(`https://${DOMAIN}`, options));
    const theirs = common(await session(THEIRS, options));
    const differences = [];
    for (const step of Object.keys(ours)) {
      for (const text of ours[step]) if (!theirs[step].has(text)) differences.push(`${step} | ours alone: ${text}`);
      for (const text of theirs[step]) if (!ours[step].has(text)) differences.push(`${step} | theirs alone: ${text}`);
    }
    const same = Object.keys(ours).flatMap((step) => [...ours[step]].filter((text) => theirs[step].has(text))).length;
    t.diagnostic(`${same} lines are the same in both`);
    assert.deepEqual(differences, []);
    for (const name of Object.keys(DIFFERENCES)) assert.ok(DOCUMENTED.includes(`| ${name} |`), `docs/livekit.md does not tell of "${name}"`);
  });
}
