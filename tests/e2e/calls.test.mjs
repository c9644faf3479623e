// Real browsers, a real firewall, the real binary. One server with two workers serves all tests in turn.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { PROXY } from "./lib/net.mjs";
import { Participant, startChromium, startFirefox, startMortalChromium } from "./lib/browsers.mjs";
import { setStage } from "./lib/stage.mjs";
import { over, until } from "./lib/until.mjs";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

const TEST = { timeout: 180_000 };
// Functional runs have generous limits; those of quality hold on a machine that does nothing else: `make scenarios`.
const limit = (quality, generous) => (process.env.POSTERN_SCENARIOS === "1" ? quality : generous);
let lab, server, atHome, inOffice;

before(async () => {
  ({ lab, server } = await setStage());
  atHome = await startChromium(lab, server, "home");
  inOffice = await startChromium(lab, server, "office");
}, { timeout: 60_000 });

after(async () => {
  await Promise.allSettled([atHome?.close(), inOffice?.close()]);
  lab?.close();
});

/** Frames decoded and audio keep growing on every side, in every step of a while. */
async function growing(participants, totalMs, steps) {
  await over(totalMs, steps, async (previous, i) => {
    const now = await Promise.all(participants.map((p) => p.streams()));
    for (const [at, p] of participants.entries()) {
      if (!previous) continue;
      // Stream by stream: those of somebody who left are no loss.
      const grew = (kind) => now[at].filter((s) => s.kind === kind).reduce((sum, s) => sum + s.count - (previous[at].find((b) => b.id === s.id)?.count ?? 0), 0);
      assert.ok(grew("video") > 5, `${p.name}: step ${i}: ${grew("video")} more frames`);
      assert.ok(grew("audio") > 20, `${p.name}: step ${i}: ${grew("audio")} more audio packets`);
    }
    return now;
  });
}

async function leaveAll(...participants) {
  await Promise.all(participants.map((p) => p.leave()));
}

test("a: TLS-only firewall: relay over tls, in process, without a socket of its own", TEST, async () => {
  lab.firewall("tls");
  const before = server.metrics();
  const [ada, bob] = await Promise.all([
    Participant.join(inOffice, server, "a", "ada"),
    Participant.join(atHome, server, "a", "bob"),
  ]);
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  await growing([ada, bob], 20_000, 5);
  assert.equal(await ada.path(), "relay/tls");
  assert.equal(await bob.path(), "udp");
  const now = server.metrics();
  const grew = (name) => now.get(name) - (before.get(name) ?? 0);
  const relayedIn = grew('postern_relay_packets_in_process_total{direction="in"}');
  assert.ok(relayedIn > 1000, `${relayedIn} packets from the relay in process`);
  assert.ok(grew('postern_relay_packets_in_process_total{direction="out"}') > 1000);
  // No UDP port but the two that are bound, and towards the office nothing but connections to 443.
  const udp = lab.in(lab.names.server, "ss", "-Huan").trim().split("\n").map((line) => line.trim().split(/\s+/)[3].split(":").at(-1));
  assert.deepEqual([...new Set(udp)].sort(), ["3478", "443"]);
  const tcp = lab.in(lab.names.server, "ss", "-Htn", "dst", "10.99.1.0/24").trim().split("\n").map((line) => line.trim().split(/\s+/)[3]);
  assert.ok(tcp.length > 0 && tcp.every((local) => local.endsWith(":443")), tcp.join());
  // The others are told the way that the server sees.
  assert.equal(await bob.ask(() => [...window.postern.room.remoteParticipants.values()][0].attributes["postern.path"]), "relay/tls");
  await leaveAll(ada, bob);
});

test("b: port-only firewall: direct tcp, and relay over tcp when a relay is forced", TEST, async () => {
  lab.firewall("port");
  const bob = await Participant.join(atHome, server, "b", "bob");
  for (const [options, want] of [[{}, "tcp"], [{ relay: "1" }, "relay/t"]]) {
    const ada = await Participant.join(inOffice, server, "b", "ada", options);
    await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
    await growing([ada, bob], 4_000, 2);
    const path = await ada.path();
    assert.ok(path.startsWith(want), `${path} instead of ${want}`);
    if (options.relay) assert.equal(path, "relay/tcp");
    await ada.leave();
    await until("bob is alone again", 10_000, async () => (await bob.others()).length === 0);
  }
  await bob.leave();
});

test("c: through an HTTP CONNECT proxy with the direct way closed", TEST, async () => {
  lab.firewall("closed");
  const file = join(lab.dir, "tinyproxy.conf");
  writeFileSync(file, "Port 8888\nListen 10.99.1.1\nTimeout 600\nAllow 10.99.1.0/24\nConnectPort 443\nMaxClients 50\n");
  const proxy = lab.spawn(lab.names.router, "tinyproxy", ["-d", "-c", file]);
  await until("the proxy listens", 10_000, () => lab.in(lab.names.router, "ss", "-Htln").includes(":8888"));
  const behindProxy = await startChromium(lab, server, "office", [`--proxy-server=http://${PROXY}`]);
  try {
    const bob = await Participant.join(atHome, server, "c", "bob");
    // Chromium takes ICE-TCP through the proxy too; a relay is for proxies that insist on TLS.
    for (const [options, want] of [[{}, /^(tcp|relay\/(tcp|tls))$/], [{ relay: "1" }, /^relay\/(tcp|tls)$/]]) {
      const ada = await Participant.join(behindProxy, server, "c", "ada", options);
      await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
      await growing([ada, bob], 4_000, 2);
      assert.match(await ada.path(), want);
      await ada.leave();
      await until("bob is alone again", 10_000, async () => (await bob.others()).length === 0);
    }
    await bob.leave();
  } finally {
    await behindProxy.close();
    proxy.kill();
  }
});

test("d: an open browser takes direct udp although STUN and TURN/UDP are offered", TEST, async () => {
  lab.firewall("open");
  const [ada, bob] = await Promise.all([
    Participant.join(inOffice, server, "d", "ada"),
    Participant.join(atHome, server, "d", "bob"),
  ]);
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  assert.deepEqual(await Promise.all([ada.path(), bob.path()]), ["udp", "udp"]);
  const urls = await ada.ask(() => window.postern.connection().getConfiguration().iceServers.flatMap((s) => s.urls));
  assert.ok(urls.some((u) => u.startsWith("stun:")) && urls.some((u) => /^turn:.*transport=udp/.test(u)), urls.join());
  // Disjoint, or Chromium would swallow media that comes from a TURN URL's port.
  const candidates = await ada.ask(() => window.postern.connection().remoteDescription.sdp.match(/candidate:.* udp .*/g));
  assert.ok(candidates.every((c) => c.includes(" 443 ")) && urls.filter((u) => u.includes("udp") || u.startsWith("stun:")).every((u) => u.includes(":3478")));
  await leaveAll(ada, bob);
});

test("e: Firefox joins, both directions", TEST, async () => {
  lab.firewall("open");
  const firefox = await startFirefox(lab, server, "office");
  try {
    const bob = await Participant.join(atHome, server, "e", "bob");
    const fox = await Participant.join(firefox, server, "e", "fox");
    await Promise.all([fox.seesAndHears(), bob.seesAndHears()]);
    await growing([fox, bob], 10_000, 2);
    await leaveAll(fox, bob);
  } finally {
    await firefox.close();
  }
});

test("f: three parties on two workers; one leaves, one is killed", TEST, async () => {
  const victim = await startMortalChromium(lab, server, "office");
  const [ada, bob, eve] = await Promise.all([
    Participant.join(inOffice, server, "f", "ada"),
    Participant.join(atHome, server, "f", "bob"),
    Participant.join(victim.browser, server, "f", "eve"),
  ]);
  await Promise.all([ada.seesAndHears(2), bob.seesAndHears(2), eve.seesAndHears(2)]);
  await ada.leave();
  await until("bob and eve see ada leave", 5_000, async () => {
    const others = await Promise.all([bob.others(), eve.others()]);
    return others.every((names) => !names.includes("ada"));
  });
  await growing([bob, eve], 4_000, 2);
  victim.kill();
  await until("bob is told that eve is gone", 25_000, async () => (await bob.others()).length === 0);
  await bob.leave();
});

test("g: data messages, reliable and lossy, to all and to one", TEST, async () => {
  const [ada, bob, eve] = await Promise.all([
    Participant.join(inOffice, server, "g", "ada", { camera: "0" }),
    Participant.join(atHome, server, "g", "bob", { camera: "0" }),
    Participant.join(atHome, server, "g", "eve", { camera: "0" }),
  ]);
  for (const p of [bob, eve]) {
    await p.ask(() => {
      window.got = [];
      window.postern.room.on("dataReceived", (bytes, from, _kind, topic) => {
        if (topic === "test") window.got.push([from.identity, bytes.length, bytes[0]]);
      });
    });
  }
  await until("all know each other", 10_000, async () => (await ada.others()).length === 2);
  await ada.ask(async () => {
    const own = window.postern.room.localParticipant;
    for (let i = 0; i < 50; i += 1) await own.publishData(new Uint8Array([i]), { reliable: true, topic: "test" });
    await own.publishData(new Uint8Array(15_000).fill(60), { reliable: true, topic: "test" });
    await own.publishData(new Uint8Array([70]), { reliable: false, topic: "test" });
    await own.publishData(new Uint8Array([80]), { reliable: true, topic: "test", destinationIdentities: ["eve"] });
  });
  await until("eve has them all", 10_000, async () => (await eve.ask(() => window.got.length)) === 53);
  await until("bob has all but one", 10_000, async () => (await bob.ask(() => window.got.length)) === 52);
  const got = await bob.ask(() => window.got);
  assert.ok(got.every(([from]) => from === "ada"));
  const reliable = got.map(([, , first]) => first).filter((first) => first < 50);
  assert.deepEqual(reliable, [...Array(50).keys()], "in order");
  assert.ok(got.some(([, length, first]) => first === 60 && length === 15_000), "whole");
  await leaveAll(ada, bob, eve);
});

test("h: a change of quality is seen in the received frame size", TEST, async () => {
  const [ada, bob] = await Promise.all([
    Participant.join(inOffice, server, "h", "ada", { camera: "0" }),
    Participant.join(atHome, server, "h", "bob"),
  ]);
  await ada.seesAndHears();
  const choose = (quality) =>
    ada.ask((q) => {
      const remote = [...window.postern.room.remoteParticipants.values()][0];
      for (const publication of remote.videoTrackPublications.values()) publication.setVideoQuality(q);
    }, quality);
  await until("the full size arrives", 30_000, async () => (await ada.received()).width >= 640);
  const widths = [(await ada.received()).width];
  await choose(0);
  await until("the low layer arrives", 15_000, async () => (await ada.received()).width <= 320);
  await choose(2);
  await until("the high layer is back", 15_000, async () => (await ada.received()).width >= widths[0]);
  await leaveAll(ada, bob);
});

test("i: every codec that the browser publishes is decoded by the other", TEST, async () => {
  const bob = await Participant.join(atHome, server, "i", "bob", { camera: "0" });
  for (const codec of ["h264", "vp9", "av1"]) {
    const ada = await Participant.join(inOffice, server, "i", "ada", { codec });
    await bob.seesAndHears();
    await growing([bob], 3_000, 1);
    const decoded = await bob.ask(async () => {
      const rows = await window.postern.stats();
      const video = rows.find((row) => row.type === "inbound-rtp" && row.kind === "video" && row.framesDecoded > 0);
      return rows.find((row) => row.id === video.codecId).mimeType.toLowerCase();
    });
    assert.equal(decoded, `video/${codec}`);
    await ada.leave();
    await until("bob is alone again", 10_000, async () => (await bob.others()).length === 0);
  }
  await bob.leave();
});

test("k: mute, speakers, lost signalling, full reconnect, the same name twice", TEST, async () => {
  const [ada, bob] = await Promise.all([
    Participant.join(inOffice, server, "k", "ada", { camera: "0" }),
    Participant.join(atHome, server, "k", "bob"),
  ]);
  await until("ada hears and sees bob", 20_000, async () => (await ada.received()).frames > 10);
  // The fake microphone beeps once a second.
  await until("somebody is heard speaking", 15_000, () =>
    ada.ask(() => {
      window.spoke ??= (window.postern.room.on("activeSpeakersChanged", (s) => (window.spoken ||= s.length > 0)), true);
      return window.spoken;
    }));
  // Who does not want a track is rid of it, and gets it back.
  const want = (yes) => ada.ask((on) => [...window.postern.room.remoteParticipants.values()][0].videoTrackPublications.forEach((p) => p.setSubscribed(on)), yes);
  const hasVideo = () => ada.ask(() => [...[...window.postern.room.remoteParticipants.values()][0].videoTrackPublications.values()].some((p) => p.track));
  await want(false);
  await until("ada is rid of the track", 10_000, async () => !(await hasVideo()));
  await want(true);
  await until("ada has it again", 10_000, hasVideo);
  await seeing(ada, 3_000);
  await ada.ask(() => window.postern.room.localParticipant.setMicrophoneEnabled(false));
  const adaIsMuted = () => bob.ask(() => [...window.postern.room.remoteParticipants.values()][0]?.isMicrophoneEnabled === false);
  await until("bob sees that ada is muted", 5_000, adaIsMuted);
  const seesOn = async () => {
    const { frames } = await ada.received();
    await until("ada sees more of bob", 10_000, async () => (await ada.received()).frames > frames + 20);
  };
  // A camera that is switched off and on, and one that is replaced by another, go on in the same stream.
  await bob.ask(() => window.postern.room.localParticipant.setCameraEnabled(false));
  await until("ada sees that bob's camera is off", 5_000, () => ada.ask(() => [...window.postern.room.remoteParticipants.values()][0].isCameraEnabled === false));
  await bob.ask(() => window.postern.room.localParticipant.setCameraEnabled(true));
  await until("ada sees that it is on", 5_000, () => ada.ask(() => [...window.postern.room.remoteParticipants.values()][0].isCameraEnabled));
  await seesOn();
  const sent = () => bob.ask(() => [...window.postern.room.localParticipant.videoTrackPublications.values()][0].track.mediaStreamTrack.id);
  const before = await sent();
  await bob.ask(() => [...window.postern.room.localParticipant.videoTrackPublications.values()][0].track.restartTrack({ resolution: { width: 640, height: 360 } }));
  assert.notEqual(await sent(), before, "another camera");
  await until("ada sees the other camera", 10_000, async () => (await ada.received()).width <= 640);
  await seesOn();
  // The signalling connection is lost; media goes on and the SDK resumes.
  const reconnected = (p) => p.ask(() => (window.events = [], ["reconnecting", "signalReconnecting", "reconnected", "disconnected"].forEach((e) => window.postern.room.on(e, () => window.events.push(e)))));
  await reconnected(bob);
  const sidOf = (p) => p.ask(() => window.postern.room.localParticipant.sid);
  const sid = await sidOf(bob);
  await ada.ask(() => {
    window.got = [];
    window.postern.room.on("dataReceived", (bytes, _from, _kind, topic) => topic === "count" && window.got.push(Number(new TextDecoder().decode(bytes))));
  });
  // Counted before, from the moment on in which the connection is missed, and after.
  await bob.ask(async () => {
    const { room } = window.postern;
    window.count = async (from, to) => {
      for (let i = from; i < to; i += 1) await room.localParticipant.publishData(new TextEncoder().encode(String(i)), { reliable: true, topic: "count" });
    };
    room.once("signalReconnecting", () => (window.counted = window.count(30, 60)));
    await window.count(0, 30);
  });
  await bob.ask(() => window.postern.room.simulateScenario("signal-reconnect"));
  await until("bob has resumed", 20_000, () => bob.ask(() => window.events.includes("reconnected")));
  await bob.ask(async () => {
    await window.counted;
    await window.count(60, 100);
  });
  await until("ada has heard bob count to the end", 10_000, () => ada.ask(() => window.got.at(-1) === 99));
  assert.deepEqual(await ada.ask(() => window.got), Array.from({ length: 100 }, (_, i) => i), "each message once, in order");
  assert.equal(await sidOf(bob), sid, "the same participant");
  await seeing(ada, 4_000);
  // A full reconnect joins anew, and the tracks are back.
  await reconnected(bob);
  await bob.ask(() => window.postern.room.simulateScenario("full-reconnect"));
  await until("bob is back", 30_000, () => bob.ask(() => window.events.includes("reconnected")));
  assert.notEqual(await sidOf(bob), sid, "a new participant");
  await until("ada sees the new bob", 20_000, async () => (await ada.received()).videos > 0);
  await seeing(ada, 4_000);
  // Who joins twice is moved.
  await bob.ask(() => window.postern.room.on("disconnected", (reason) => (window.why = reason)));
  const again = await Participant.join(atHome, server, "k", "bob");
  await until("the first bob is told", 5_000, async () => (await bob.ask(() => window.why)) === 2);
  assert.match(await bob.ask(() => document.querySelector("#trouble").textContent), /joined from somewhere else/);
  await bob.page.close();
  await leaveAll(ada, again);
});

test("l: five per cent of loss and 100 ms away, by udp and through the relay by tls: repaired, not frozen", { timeout: 400_000 }, async () => {
  lab.firewall("open");
  await lab.far(50, 50);
  for (const start of [startChromium, startFirefox]) {
    for (const [firewall, way] of [["open", "udp"], ["tls", "relay/tls"]]) {
      lab.firewall(firewall, "far");
      // A browser of its own each time: one that goes on over a connection from before would be cut off.
      const far = await start(lab, server, "far");
      try {
        const bob = await Participant.join(atHome, server, "l", "bob");
        const ada = await Participant.join(far, server, "l", "ada");
        await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
        const before = server.metrics();
        const watched = limit(30_000, 10_000);
        const [atAda, atBob] = await Promise.all([ada.watch(watched), bob.watch(watched)]);
        const now = server.metrics();
        const grown = (name) => now.get(name) - (before.get(name) ?? 0);
        const asked = grown("postern_key_frame_requests_total");
        const causes = Object.fromEntries(["stream_start", "picture_lost", "repair_failed"].map((cause) => [cause, grown(`postern_key_frame_causes_total{cause="${cause}"}`)]));
        const path = await ada.path();
        const nacks = grown("postern_nacks_sent_total");
        const resent = grown('postern_retransmissions_total{outcome="sent"}');
        const recovered = grown("postern_redundancy_recovered_packets_total");
        const summary = `${start.name}: ${JSON.stringify({ path, atAda, atBob, asked, causes, nacks, resent, recovered })}`;
        console.log(summary);
        assert.equal(path, way);
        for (const seen of [atAda, atBob]) {
          assert.ok(seen.frames > limit(150, 20), summary);
          assert.ok(seen.longestMs < limit(1_000, 6_000), summary);
        }
        assert.ok(asked <= limit(6, 100), summary);
        if (way === "udp") {
          // Firefox counts what it asked for, and not what of it came.
          const repaired = start === startFirefox ? atAda.nacks : atAda.repaired;
          assert.ok(resent > 0 && repaired > 0, `ada got repairs: ${summary}`);
          assert.ok(nacks > 0 && atAda.resent > 0, `ada repaired: ${summary}`);
          if (start === startChromium) assert.ok(recovered > 0, `ada's lost voice came again: ${summary}`);
        }
        await leaveAll(ada, bob);
      } finally {
        await far.close();
      }
    }
  }
});

test("m: from the high layer to the low one and back, every two seconds, in every codec", { timeout: 400_000 }, async () => {
  lab.firewall("open");
  const ada = await Participant.join(inOffice, server, "m", "ada", { camera: "0" });
  for (const codec of ["vp8", "h264", "vp9", "av1"]) {
    const bob = await Participant.join(atHome, server, "m", "bob", { codec });
    await ada.seesAndHears();
    await until(`${codec} arrives in full`, 30_000, async () => (await ada.received()).width >= 640);
    const flips = ada.ask(async () => {
      const publications = () => [...window.postern.room.remoteParticipants.values()].flatMap((p) => [...p.videoTrackPublications.values()]);
      const width = async () => Math.max(...(await window.postern.stats()).filter((r) => r.type === "inbound-rtp" && r.kind === "video").map((r) => r.frameWidth ?? 0));
      const widths = [];
      for (let i = 0; i < 14; i += 1) {
        for (const publication of publications()) publication.setVideoQuality(i % 2 === 0 ? 0 : 2);
        await new Promise((resolve) => setTimeout(resolve, 2_000));
        widths.push(await width());
      }
      return widths;
    });
    const [seen, widths] = await Promise.all([ada.watch(28_000), flips]);
    const summary = `${codec}: ${JSON.stringify({ ...seen, widths })}`;
    console.log(summary);
    const switched = widths.filter((width, i) => (i % 2 === 0 ? width <= 320 : width >= 640)).length;
    assert.ok(switched >= limit(widths.length, widths.length - 4), summary);
    assert.ok(seen.frames > limit(150, 50), summary);
    assert.ok(seen.longestMs < limit(700, 6_000), summary);
    assert.ok(seen.plis <= limit(4, 20), summary);
    await bob.leave();
    await until("ada is alone again", 10_000, async () => (await ada.others()).length === 0);
  }
  await ada.leave();
});

test("n: one is stopped, another floods: nobody else notices", TEST, async () => {
  lab.firewall("open");
  const [ada, bob, eve] = await Promise.all([
    Participant.join(atHome, server, "n", "ada"),
    Participant.join(atHome, server, "n", "bob"),
    Participant.join(inOffice, server, "n", "eve"),
  ]);
  await Promise.all([ada.seesAndHears(2), bob.seesAndHears(2), eve.seesAndHears(2)]);
  const calm = async (what) => {
    const [atAda, atBob] = await Promise.all([ada.watch(8_000), bob.watch(8_000)]);
    for (const seen of [atAda, atBob]) assert.ok(seen.frames > limit(40, 10) && seen.longestMs < limit(1_000, 6_000), `${what}: ${JSON.stringify(seen)}`);
  };
  const flood = eve.ask(async () => {
    const own = window.postern.room.localParticipant;
    const end = performance.now() + 8_000;
    let sent = 0;
    while (performance.now() < end) {
      const messages = Array.from({ length: 20 }, () => own.publishData(new Uint8Array(14_000), { reliable: false, topic: "flood" }).catch(() => {}));
      await Promise.all(messages);
      sent += messages.length;
    }
    return sent;
  });
  await calm("eve floods");
  assert.ok((await flood) > 100);
  const pids = lab.in(lab.names.office, "ip", "netns", "pids", lab.names.office).trim().split(/\s+/).map(Number);
  const everyOne = (signal) => { for (const pid of pids) try { process.kill(pid, signal); } catch { /* ended meanwhile */ } };
  everyOne("SIGSTOP");
  try {
    await calm("eve is stopped");
  } finally {
    everyOne("SIGCONT");
  }
  // A process that stood still plays what waited for it, asks for key frames, and is there again.
  const { frames } = await eve.received();
  await until("eve's pictures move again", 20_000, async () => (await eve.received()).frames > frames + 20);
  await growing([ada, bob, eve], 4_000, 1);
  await leaveAll(ada, bob, eve);
});

/** Video keeps growing; nobody need speak. */
async function seeing(participant, totalMs) {
  await over(totalMs, 2, async (previous) => {
    const { frames } = await participant.received();
    if (previous !== undefined) assert.ok(frames > previous + 5, `${participant.name}: ${previous} -> ${frames} frames`);
    return frames;
  });
}

test("a reload is back within two seconds, and a second server is refused", TEST, async () => {
  const [ada, bob] = await Promise.all([
    Participant.join(inOffice, server, "r", "ada"),
    Participant.join(atHome, server, "r", "bob"),
  ]);
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  await ada.page.reload();
  const start = performance.now();
  await ada.seesAndHears();
  const tookMs = performance.now() - start;
  console.log(`sees and hears ${Math.round(tookMs)} ms after a reload`);
  await until("bob sees ada again", 10_000, async () => (await bob.received()).frames > 0);
  let refused = "";
  try {
    lab.in(lab.names.server, process.env.POSTERN ?? new URL("../../target/x86_64-unknown-linux-gnu/debug/postern", import.meta.url).pathname, "run", "--config", server.config);
  } catch (error) {
    refused = error.stderr;
  }
  assert.match(refused, /cannot bind UDP 0\.0\.0\.0:443.*another Postern/);
  await leaveAll(ada, bob);
});

test("SIGTERM tells everybody and ends cleanly", TEST, async () => {
  const bob = await Participant.join(atHome, server, "z", "bob", { camera: "0" });
  const code = server.stop();
  assert.equal(await code, 0);
  await bob.page.close();
});
