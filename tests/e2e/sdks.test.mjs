// Other people's clients, unmodified and of several ages, by their own documentation: only URL and keys are ours.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { AccessToken } from "livekit-server-sdk";
import { startChromium } from "./lib/browsers.mjs";
import { DOMAIN } from "./lib/net.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { startHooks, startService } from "./lib/service.mjs";
import { setStage, startProgram } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 180_000 };
const client = (name) => new URL(`clients/${name}`, import.meta.url).pathname;
let lab, server, browser;

before(async () => {
  const hooks = "http://127.0.0.1:9000/hook";
  ({ lab, server } = await setStage({ config: `[webhooks]\nurls = ["${hooks}", "http://127.0.0.1:9/nobody-listens"]\n` }));
  browser = await startChromium(lab, server, "home");
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  lab?.close();
});

for (const [release, options, name] of [
  ["livekit-client", {}, "current"],
  ["livekit-client", { singlePeerConnection: false }, "current, two peer connections"],
  ["livekit-client-v2", {}, "2.9"],
  ["livekit-client-v1", {}, "1.15"],
]) {
  test(`livekit-client ${name}: publishes, hears and sees, sends data, mutes, comes back, leaves`, TEST, async () => {
    const [ada, bob] = await Promise.all([SdkPage.open(browser, release, "ada"), SdkPage.open(browser, "livekit-client", "bob")]);
    const room = `sdk ${name}`;
    await bob.connect(server.token(room, "bob"));
    await bob.publish();
    await ada.connect(server.token(room, "ada"), options);
    await ada.publish();
    await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
    const count = await ada.ask(() => window.pcs.filter((pc) => pc.connectionState === "connected").length);
    assert.equal(count, name === "current" ? 1 : 2, "peer connections");

    // Data, both ways.
    for (const [from, to, text] of [[ada, bob, "from ada"], [bob, ada, "from bob"]]) {
      await from.ask(
        ({ text, isOld }) => {
          // The first major release takes the kind of delivery as a number.
          const how = isOld ? window.LivekitClient.DataPacket_Kind.RELIABLE : { reliable: true };
          return window.room.localParticipant.publishData(new TextEncoder().encode(text), how);
        },
        { text, isOld: release === "livekit-client-v1" && from === ada },
      );
      await until(`${to.name} gets what ${from.name} sent`, 10_000, async () => (await to.events("dataReceived")).some(([, got]) => got === text));
    }

    // Mute is seen by the other one.
    await ada.ask(() => window.room.localParticipant.setMicrophoneEnabled(false));
    await until("bob sees ada muted", 10_000, async () => (await bob.events("trackMuted")).length > 0);
    await ada.ask(() => window.room.localParticipant.setMicrophoneEnabled(true));
    await until("bob sees ada unmuted", 10_000, async () => (await bob.events("trackUnmuted")).length > 0);

    // Signalling alone is cut: media goes on, and the client resumes.
    await ada.ask(() => window.room.simulateScenario("signal-reconnect"));
    await until("ada is back", 15_000, async () => (await ada.events("reconnected")).length + (await ada.events("signalReconnecting")).length > 0);
    await until("ada is connected", 15_000, async () => (await ada.ask(() => window.room.state)) === "connected");
    await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);

    // A full reconnect: everything anew, by itself.
    await ada.ask(() => window.room.simulateScenario("full-reconnect"));
    await until("ada has joined anew", 20_000, async () => (await ada.events("reconnected")).length > 0);
    await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);

    await ada.close();
    await until("bob sees ada leave", 10_000, async () => (await bob.ask(() => window.room.remoteParticipants?.size ?? window.room.participants.size)) === 0);
    await bob.close();
  });
}

test("livekit-server-sdk: every method of the room service, seen from a page; webhooks verified and in order", TEST, async () => {
  const events = await startHooks(lab, 9000);
  const service = startService(lab, server);
  const room = "administered";
  const made = await service.createRoom({ name: room, emptyTimeout: 60, departureTimeout: 5, maxParticipants: 2, metadata: "first" });
  assert.equal(made.name, room);
  assert.match(made.sid, /^RM_/);
  assert.deepEqual([made.emptyTimeout, made.departureTimeout, made.maxParticipants, made.metadata], [60, 5, 2, "first"]);
  assert.deepEqual((await service.listRooms([room])).map((r) => r.sid), [made.sid]);
  assert.deepEqual(await service.listRooms(["nowhere"]), []);

  const [ada, bob, eve] = await Promise.all(["ada", "bob", "eve"].map((name) => SdkPage.open(browser, "livekit-client", name)));
  await ada.connect(server.token(room, "ada"));
  await ada.publish();
  await bob.connect(server.token(room, "bob"));
  await bob.publish();
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  await assert.rejects(eve.connect(server.token(room, "eve")), /full|503|could not/i, "the room is full");
  const people = await service.listParticipants(room);
  assert.deepEqual(people.map((p) => p.identity).sort(), ["ada", "bob"]);
  const seen = await service.getParticipant(room, "ada");
  assert.equal(seen.state, "ACTIVE");
  assert.deepEqual(seen.tracks.map((t) => t.source).sort(), ["CAMERA", "MICROPHONE"]);

  // Mute: the page is told, and what it might still send is dropped.
  const camera = seen.tracks.find((t) => t.source === "CAMERA").sid;
  await service.mutePublishedTrack(room, "ada", camera, true);
  await until("ada is told that it is muted", 10_000, async () => (await ada.events("trackMuted")).length > 0);
  await until("bob sees ada muted", 10_000, async () => (await bob.events("trackMuted")).length > 0);
  await assert.rejects(service.mutePublishedTrack(room, "ada", camera, false), { status: 412, code: "failed_precondition" });
  await assert.rejects(service.mutePublishedTrack(room, "ada", "TR_nothing", true), { status: 404, code: "not_found" });

  // What a participant and a room say of themselves.
  const updated = await service.updateParticipant(room, "ada", { metadata: "in charge", attributes: { hand: "up" }, name: "Ada L." });
  assert.deepEqual([updated.metadata, updated.attributes.hand, updated.name], ["in charge", "up", "Ada L."]);
  await until("bob reads it", 10_000, async () => (await bob.ask(() => [...window.room.remoteParticipants.values()][0].metadata)) === "in charge");
  await service.updateRoomMetadata(room, "second");
  await until("bob reads the room's", 10_000, async () => (await bob.ask(() => window.room.metadata)) === "second");

  // Data: to one, and once although it is sent twice.
  await service.sendData(room, { bytes: "for bob" }, 0, { destinationIdentities: ["bob"], topic: "notice" });
  await until("bob gets it", 10_000, async () => (await bob.events("dataReceived")).some(([, text, , , topic]) => text === "for bob" && topic === "notice"));
  assert.ok(!(await ada.events("dataReceived")).some(([, text]) => text === "for bob"), "ada does not");

  // Subscriptions and permissions, changed from outside.
  const microphone = seen.tracks.find((t) => t.source === "MICROPHONE").sid;
  await service.updateSubscriptions(room, "bob", [microphone], false);
  await until("bob hears ada no longer", 10_000, async () => (await bob.events("trackUnsubscribed")).some((e) => e.includes(microphone)));
  await service.updateSubscriptions(room, "bob", [microphone], true);
  await until("bob hears ada again", 10_000, async () => (await bob.events("trackSubscribed")).filter((e) => e.includes(microphone)).length === 2);
  await service.updateParticipant(room, "ada", { permission: { canPublish: false, canSubscribe: true, canPublishData: true } });
  await until("ada's tracks are gone", 10_000, async () => (await bob.ask(() => [...window.room.remoteParticipants.values()][0].trackPublications.size)) === 0);
  await until("ada knows that she may not", 5_000, async () => (await ada.ask(() => window.room.localParticipant.permissions.canPublish)) === false);

  await assert.rejects(service.moveParticipant(room, "ada", "elsewhere"), { status: 501 });
  await assert.rejects(service.getParticipant(room, "nobody"), { status: 404 });
  await service.removeParticipant(room, "ada");
  await until("ada is out", 10_000, async () => (await ada.events("disconnected")).some(([, reason]) => reason === 4));
  await service.deleteRoom(room);
  await until("bob is out", 10_000, async () => (await bob.events("disconnected")).some(([, reason]) => reason === 5));
  assert.deepEqual(await service.listRooms([room]), []);

  await until("the webhooks have told it all", 30_000, () => events.some((e) => e.event === "room_finished" && e.room === room));
  assert.ok(events.every((e) => e.event !== "not verified" && e.type === "application/webhook+json"), JSON.stringify(events));
  const told = events.filter((e) => e.room === room).map((e) => [e.event, e.participant].filter(Boolean).join(" "));
  assert.equal(told[0], "room_started");
  assert.equal(told.at(-1), "room_finished");
  const count = (what) => told.filter((t) => t === what).length;
  for (const name of ["ada", "bob"]) {
    assert.deepEqual(["participant_joined", "track_published", "track_unpublished", "participant_left"].map((e) => count(`${e} ${name}`)), [1, 2, 2, 1], `${name}: ${told}`);
    assert.ok(told.indexOf(`participant_joined ${name}`) < told.indexOf(`participant_left ${name}`));
  }
  assert.equal(new Set(events.map((e) => e.id)).size, events.length, "each once");
  await Promise.all([ada.close(), bob.close(), eve.close()]);
});

/** Starts a client in the office that trusts the server; `says` waits for what it prints. */
function start(command, args, name) {
  const trust = { SSL_CERT_FILE: server.authority, NODE_EXTRA_CA_CERTS: server.authority, PYTHONPATH: client(""), SCHEMATHESIS_HOOKS: "sdp_hooks" };
  const child = startProgram(lab, command, args, trust);
  child.says = (what, withinMs = 30_000) => until(`${name} says ${what}`, withinMs, () => child.said.includes(what)).catch((error) => {
    throw new Error(`${error.message}\n${child.said.slice(-3000)}\n${server.log.slice(-3000)}`);
  });
  return child;
}

test("Python and Node SDKs: media both ways, text, calls between them and to a page, room service in protobuf", TEST, async () => {
  const room = "programs";
  const url = `wss://${DOMAIN}`;
  const ada = await SdkPage.open(browser, "livekit-client", "ada");
  await ada.connect(server.token(room, "ada"));
  await ada.publish();
  const py = start(new URL(".venv/bin/python", import.meta.url).pathname, [client("python_sdk.py"), url, room, "py", "devkey", "secret"], "the Python program");
  await py.says("published");
  const node = start(process.execPath, [client("node_sdk.mjs"), url, server.token(room, "node")], "the Node program");
  await Promise.all([py.says("received video ada"), py.says("received audio ada"), py.says("received audio node"), node.says("received audio ada"), node.says("received audio py")]);
  await Promise.all([py.says("text node good morning"), node.says("rpc hello node from py")]);
  await ada.seesAndHears();
  assert.equal(await ada.ask(() => window.room.localParticipant.performRpc({ destinationIdentity: "py", method: "greet", payload: "ada" })), "hello ada from py");
  assert.equal(await ada.ask(() => window.room.remoteParticipants.get("py").attributes.kind), "python");
  node.stop();
  await node.says("left");
  py.stop();
  await py.says("people ada py");
  await py.says("left");
  await until("ada is alone", 10_000, async () => (await ada.ask(() => window.room.remoteParticipants.size)) === 0);
  await ada.close();
});

test("garbage, oversized and half-valid requests and frames: each answered or refused, and memory stays", TEST, async () => {
  const memory = () => Number(lab.in(lab.names.server, "sh", "-c", "grep VmRSS /proc/$(pgrep -f 'postern run' | head -1)/status").match(/\d+/)[0]);
  const run = async (seed) => {
    const child = start(process.execPath, [client("garbage.mjs"), DOMAIN, server.token("garbage", "mallory"), String(seed)], "the garbage");
    await child.says("{", 120_000);
    assert.match(child.said, /^\{.*\}\s*$/, child.said);
    return JSON.parse(child.said);
  };
  await run(1);
  const before = memory();
  const counts = await run(Date.now() % 1_000_000);
  const after = memory();
  const http = Object.entries(counts).filter(([what]) => what.startsWith("http"));
  const signal = Object.entries(counts).filter(([what]) => what.startsWith("signal"));
  // What is too long is refused while it is still being written: the writer may see the end of the connection first.
  assert.ok(http.every(([what]) => /^http (2\d\d|4\d\d|501|EPIPE|ECONNRESET)$/.test(what)), JSON.stringify(counts));
  assert.ok(["EPIPE", "ECONNRESET"].reduce((sum, code) => sum + (counts[`http ${code}`] ?? 0), 0) < 60, JSON.stringify(counts));
  assert.ok(signal.every(([what]) => /^signal (pong|closed (1000|1003|1009|1006|1005)|status 429)$/.test(what)), JSON.stringify(counts));
  assert.equal(http.reduce((sum, [, n]) => sum + n, 0), 600);
  assert.ok(after < before * 1.1 + 2_048, `${before} KiB became ${after} KiB`);
  await until("nobody is left", 30_000, () => server.metrics().get("postern_participants") === 0);
});

test("the description of the HTTP endpoints is what they do (schemathesis)", { timeout: 300_000 }, async () => {
  const { AccessToken } = await import("livekit-server-sdk");
  const token = new AccessToken("devkey", "secret", { identity: "describer" });
  token.addGrant({ roomJoin: true, roomCreate: true, roomList: true, roomAdmin: true, room: "described" });
  const args = ["run", `https://${DOMAIN}/openapi.yaml`, "--url", `https://${DOMAIN}`, "--tls-verify", server.authority, "--header", `Authorization: Bearer ${await token.toJwt()}`];
  // Calls wait for participants, of whom there are none; addresses may ask a hundred times a second, and one participant join ten times.
  args.push("--rate-limit", "80/s", "--max-examples", "15", "--seed", "7", "--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color");
  // 501 stands in the description; any other answer of that kind does not.
  args.push("--checks", "status_code_conformance,content_type_conformance,response_schema_conformance");
  const child = start(new URL(".venv/bin/schemathesis", import.meta.url).pathname, args, "schemathesis");
  const code = await child.ended;
  assert.equal(code, 0, child.said.slice(-6000));
});

/** A browser that has no AV1: what it would offer and answer. */
function withoutAv1() {
  const section = (text) => {
    const of = (pattern) => [...text.matchAll(pattern)].map(([, payloadType]) => payloadType);
    const gone = of(/^a=rtpmap:(\d+) AV1\//gm);
    for (const av1 of [...gone]) gone.push(...of(new RegExp(`^a=fmtp:(\\d+) apt=${av1}\r$`, "gm")));
    const lines = text.split("\r\n").filter((line) => !gone.includes(line.match(/^a=(?:rtpmap|fmtp|rtcp-fb):(\d+) /)?.[1]));
    const [media, port, proto, ...formats] = lines[0].split(" ");
    const left = formats.filter((format) => !gone.includes(format));
    if (left.length > 0 || formats.length === 0) return [`${media} ${port} ${proto} ${left.join(" ")}`, ...lines.slice(1)].join("\r\n");
    // Nothing that it knows: the section is refused.
    return [`${media} 0 ${proto} 0`, "c=IN IP4 0.0.0.0", lines.find((line) => line.startsWith("a=mid:")), "a=inactive", ""].join("\r\n");
  };
  const strip = ({ type, sdp }) => {
    const [head, ...sections] = sdp.split(/(?=^m=)/m);
    const kept = sections.map((text) => (text.startsWith("m=video") ? section(text) : text));
    const bundled = kept.filter((text) => !/^m=\w+ 0 /.test(text)).map((text) => text.match(/^a=mid:(.*)\r$/m)[1]);
    return { type, sdp: [head.replace(/^a=group:BUNDLE.*\r$/m, `a=group:BUNDLE ${bundled.join(" ")}\r`), ...kept].join("") };
  };
  for (const method of ["createOffer", "createAnswer"]) {
    const native = RTCPeerConnection.prototype[method];
    RTCPeerConnection.prototype[method] = async function (...args) {
      return strip(await native.apply(this, args));
    };
  }
}

for (const [policy, bobWatches] of [["PREFER_REGRESSION", "video/VP8"], ["SIMULCAST", "video/AV1"]]) {
  test(`a picture in AV1 for somebody who cannot decode it: the publisher's second codec (${policy})`, TEST, async () => {
    const room = `codecs ${policy}`;
    // Of its own: an encoder for AV1 beside the cameras of all the pages before it may come too late.
    const browser = await startChromium(lab, server, "home");
    const [ada, bob] = [await SdkPage.open(browser, "livekit-client", "ada"), await SdkPage.open(browser, "livekit-client", "bob")];
    await Promise.all([ada.connect(server.token(room, "ada")), bob.connect(server.token(room, "bob"))]);
    await ada.ask((policy) => {
      const backupCodecPolicy = window.LivekitClient.BackupCodecPolicy[policy];
      return window.room.localParticipant.setCameraEnabled(true, undefined, { videoCodec: "av1", backupCodec: true, backupCodecPolicy });
    }, policy);
    const watches = async (page, codec, what) => {
      const before = await page.watched();
      const isNew = (now) => now.codec === codec && now.frames > (before.find((b) => b.id === now.id && b.codec === codec)?.frames ?? 0);
      await until(what, 30_000, async () => (await page.watched()).some(isNew)).catch(async (error) => {
        throw new Error(`${error.message}\n${JSON.stringify(await page.watched())}\n${[...ada.said.slice(-30), ...page.said.slice(-10)].join("\n")}\n${server.log.slice(-3000)}`);
      });
    };
    await watches(bob, "video/AV1", "bob sees her in AV1");
    const sid = await bob.ask(() => [...window.room.remoteParticipants.get("ada").videoTrackPublications.keys()][0]);
    for (const [name, options] of [["old", {}], ["older", { singlePeerConnection: false }]]) {
      const old = await SdkPage.open(browser, "livekit-client", name, { init: withoutAv1 });
      await old.connect(server.token(room, name), options);
      await watches(old, "video/VP8", `${name} sees her in VP8`);
      assert.deepEqual(await old.ask(() => [...window.room.remoteParticipants.get("ada").videoTrackPublications.keys()]), [sid], "it is the same track");
      await watches(bob, bobWatches, `bob sees her in ${bobWatches}`);
      // Muted and unmuted, the second codec goes and comes too.
      await ada.ask(() => window.room.localParticipant.setCameraEnabled(false));
      await until(`${name} sees it muted`, 10_000, async () => (await old.events("trackMuted")).length > 0);
      await ada.ask(() => window.room.localParticipant.setCameraEnabled(true));
      await watches(old, "video/VP8", `${name} sees her again`);
      await old.close();
    }
    const kinds = async () => (await bob.events("trackUnsubscribed")).length;
    assert.equal(await kinds(), 0, "to bob's app it is one track all along");
    await ada.ask(() => window.room.localParticipant.unpublishTrack([...window.room.localParticipant.videoTrackPublications.values()][0].track));
    await until("it is gone", 10_000, async () => (await bob.ask(() => window.room.remoteParticipants.get("ada").trackPublications.size)) === 0);
    await Promise.all([ada.close(), bob.close()]);
    await browser.close();
  });
}

test("playout delay: pictures wait as long as the room says", TEST, async () => {
  const service = startService(lab, server);
  // Pictures wait in the browser: how long each on average, seconds.
  const waits = async (room) => {
    const [ada, bob] = [await SdkPage.open(browser, "livekit-client", "ada"), await SdkPage.open(browser, "livekit-client", "bob")];
    await Promise.all([ada.connect(server.token(room, "ada")), bob.connect(server.token(room, "bob"))]);
    await ada.ask(() => window.room.localParticipant.setCameraEnabled(true));
    await until("bob has seen a hundred pictures", 30_000, async () => (await bob.watched()).some((v) => v.frames > 100));
    const [{ delay }] = (await bob.watched()).filter((v) => v.frames > 100);
    await Promise.all([ada.close(), bob.close()]);
    return delay;
  };
  await service.createRoom({ name: "held back", minPlayoutDelay: 700, maxPlayoutDelay: 1_000 });
  const [usual, heldBack] = [await waits("not held back"), await waits("held back")];
  assert.ok(heldBack > 0.55 && heldBack - usual > 0.3, `${usual} s, held back ${heldBack} s`);
});

test("data tracks of the current SDK; calls by the room service to a page", TEST, async () => {
  const room = "tracks of data";
  const [ada, bob] = [await SdkPage.open(browser, "livekit-client", "ada"), await SdkPage.open(browser, "livekit-client", "bob")];
  await bob.connect(server.token(room, "bob"));
  await bob.ask(() => {
    window.frames = [];
    window.room.on("dataTrackPublished", async (track) => {
      const reader = track.subscribe().getReader();
      for (let next = await reader.read(); !next.done; next = await reader.read()) window.frames.push([next.value.payload.length, next.value.payload.at(-1)]);
      window.frames.push("ended");
    });
    window.room.registerRpcMethod("greet", async ({ callerIdentity, payload }) => `${callerIdentity} says ${payload}`);
    window.room.registerRpcMethod("fail", async () => {
      throw new window.LivekitClient.RpcError(1234, "not today");
    });
  });
  await ada.connect(server.token(room, "ada"));
  await ada.ask(async () => {
    window.track = await window.room.localParticipant.publishDataTrack({ name: "positions" });
  });
  const frames = () => bob.ask(() => window.frames);
  // They may be lost, and nobody gets any before it has subscribed.
  for (const [length, last] of [[3, 7], [60_000, 9]]) {
    await until(`a frame of ${length} bytes arrives`, 10_000, async () => {
      await ada.ask(({ length, last }) => {
        const payload = new Uint8Array(length);
        payload[length - 1] = last;
        return window.track.tryPush({ payload });
      }, { length, last });
      return (await frames()).some((f) => f[0] === length && f[1] === last);
    });
  }
  await ada.ask(() => window.track.unpublish());
  await until("the track has ended", 10_000, async () => (await frames()).at(-1) === "ended");

  const admin = new AccessToken("devkey", "secret", { identity: "back end" });
  admin.addGrant({ roomAdmin: true, room });
  const token = await admin.toJwt();
  const call = (method, destination_identity = "bob") => {
    const body = JSON.stringify({ room, destination_identity, method, payload: "hi" });
    const args = ["-sS", "--cacert", server.authority, "-H", `Authorization: Bearer ${token}`, "-H", "Content-Type: application/json", "-d", body];
    return JSON.parse(lab.in(lab.names.home, "curl", ...args, `https://${DOMAIN}/twirp/livekit.RoomService/PerformRpc`));
  };
  assert.match(call("greet").payload, /^postern:.* says hi$/);
  const failed = call("fail");
  assert.deepEqual([failed.meta?.rpc_code, failed.meta?.rpc_message], ["1234", "not today"], JSON.stringify(failed));
  assert.equal(call("nothing").meta?.rpc_code, "1400");
  assert.equal(call("greet", "nobody").code, "not_found");
  await Promise.all([ada.close(), bob.close()]);
});
