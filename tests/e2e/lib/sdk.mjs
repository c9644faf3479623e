// Pages that join by an unmodified SDK of whatever age: its own published bundle and what its documentation says, nothing else.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { DOMAIN } from "./net.mjs";
import { until } from "./until.mjs";

const require = createRequire(import.meta.url);

/** The browser bundle of an installed release: `livekit-client`, or an alias of an older one. */
function bundle(name) {
  return readFileSync(join(dirname(require.resolve(name)), "livekit-client.umd.js"), "utf8");
}

export class SdkPage {
  constructor(page, name) {
    this.page = page;
    this.name = name;
    this.said = [];
    page.on("console", (message) => this.said.push(message.text().slice(0, 300)));
    page.on("pageerror", (error) => this.said.push(`error: ${error}`));
  }

  /**
   * Opens a page with the SDK in it, and with all its peer connections in reach. `turns` gets the moments at which the client
   * takes a decision that only it can take: `signalling` when it has connected anew, `pair` when the browser took another way.
   */
  static async open(browser, release, name, { url = `https://${DOMAIN}`, init = () => {} } = {}) {
    const page = await (await browser.newContext()).newPage();
    const one = new SdkPage(page, name);
    one.url = url;
    await page.addInitScript(init);
    await page.addInitScript(() => {
      window.pcs = [];
      window.turns = [];
      const turn = (what) => window.turns.push([what, Date.now()]);
      const Native = window.RTCPeerConnection;
      window.RTCPeerConnection = class extends Native {
        constructor(...args) {
          super(...args);
          window.pcs.push(this);
          const ice = () => this.sctp?.transport.iceTransport;
          const follow = () => ice() && (ice().onselectedcandidatepairchange = () => turn("pair"));
          this.addEventListener("connectionstatechange", follow);
        }
      };
      const Socket = window.WebSocket;
      window.WebSocket = class extends Socket {
        constructor(...args) {
          super(...args);
          this.addEventListener("open", () => turn("signalling"));
        }
      };
    });
    await page.goto(`${url}/`);
    await page.addScriptTag({ content: bundle(release) });
    return one;
  }

  ask(fn, argument) {
    return this.page.evaluate(fn, argument);
  }

  async connect(token, options = {}, connect = {}) {
    await this.ask(
      async ({ url, token, options, connect }) => {
        const room = new window.LivekitClient.Room(options);
        window.room = room;
        window.events = [];
        for (const event of Object.values(window.LivekitClient.RoomEvent)) {
          room.on(event, (...args) => window.events.push([event, ...args.map((a) => (a instanceof Uint8Array ? new TextDecoder().decode(a) : (a?.identity ?? a?.trackSid ?? a?.sid ?? (typeof a === "object" ? null : a))))]));
        }
        await room.connect(url, token, connect);
      },
      { url: this.url.replace(/^http/, "ws"), token, options, connect },
    ).catch((error) => {
      throw new Error(`${this.name}: ${error.message}\n${this.said.join("\n")}`);
    });
    return this;
  }

  publish() {
    return this.ask(async () => {
      await window.room.localParticipant.setMicrophoneEnabled(true);
      await window.room.localParticipant.setCameraEnabled(true);
    });
  }

  /**
   * The same with tracks that the page has taken itself. An SDK that joins anew takes new ones from the browser otherwise, and
   * Chromium's fake camera at times gives no picture any more when it is opened again (its `media-source` counts no frames).
   */
  publishOwn() {
    return this.ask(async () => {
      const { Track } = window.LivekitClient;
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 1280, height: 720 } });
      for (const track of stream.getTracks()) {
        await window.room.localParticipant.publishTrack(track, { source: track.kind === "audio" ? Track.Source.Microphone : Track.Source.Camera });
      }
    });
  }

  /** Sums over all peer connections of what is received. */
  received() {
    return this.ask(async () => {
      const got = { frames: 0, audio: 0, videos: 0 };
      for (const pc of window.pcs.filter((pc) => pc.connectionState !== "closed")) {
        for (const row of (await pc.getStats()).values()) {
          if (row.type !== "inbound-rtp") continue;
          if (row.kind === "video") {
            got.frames += row.framesDecoded ?? 0;
            got.videos += row.framesDecoded > 0 ? 1 : 0;
          } else got.audio += row.packetsReceived ?? 0;
        }
      }
      return got;
    });
  }

  /** The pictures that are received: codec, frames decoded, and how long each waited on average, seconds. */
  watched() {
    return this.ask(async () => {
      const stats = await Promise.all(window.pcs.filter((pc) => pc.connectionState !== "closed").map((pc) => pc.getStats()));
      return stats.flatMap((all) => {
        const videos = [...all.values()].filter((row) => row.type === "inbound-rtp" && row.kind === "video");
        return videos.map((v) => ({ id: v.id, codec: all.get(v.codecId)?.mimeType, frames: v.framesDecoded ?? 0, delay: v.jitterBufferDelay / v.jitterBufferEmittedCount }));
      });
    });
  }

  /** Waits until pictures and sound flow: both grow within a tenth of a second or so. */
  async flows(withinMs) {
    let before = await this.received();
    await until(`${this.name} has media`, withinMs, async () => {
      const now = await this.received();
      const grew = now.frames > before.frames && now.audio > before.audio;
      before = now;
      return grew;
    }).catch((error) => {
      throw new Error(`${error.message}\n${JSON.stringify(before)}\n${this.said.slice(-30).join("\n")}`);
    });
  }

  /** Waits until new frames are decoded and new sound arrives. */
  async seesAndHears(withinMs = 30_000) {
    const before = await this.received();
    const start = performance.now();
    let now;
    await until(`${this.name} sees and hears`, withinMs, async () => {
      now = await this.received();
      return now.frames > before.frames + 10 && now.audio > before.audio + 20;
    }).catch((error) => {
      throw new Error(`${error.message}\n${JSON.stringify({ before, now })}\n${this.said.join("\n")}`);
    });
    return performance.now() - start;
  }

  events(name) {
    return this.ask((name) => window.events.filter(([event]) => event === name), name);
  }

  async close() {
    await this.ask(() => window.room?.disconnect()).catch(() => {});
    await this.page.context().close();
  }
}
