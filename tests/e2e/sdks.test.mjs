// Other people's clients, unmodified and of several ages, by their own documentation: only URL and keys are ours.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { Lab } from "./lib/net.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { Server } from "./lib/server.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 180_000 };
let lab, server, browser;

before(async () => {
  lab = new Lab();
  await lab.settled();
  server = new Server(lab, { workers: 2 });
  await server.start();
  lab.firewall("open");
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
