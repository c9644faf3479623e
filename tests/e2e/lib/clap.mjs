// Sound against picture, as a film crew does it: a flash and a beep at the same moment, once a second.

import { until } from "./until.mjs";

/** Publishes claps from an `SdkPage`. */
export function clap(page) {
  return page.ask(async () => {
    const audio = new AudioContext();
    const sound = audio.createMediaStreamDestination();
    const loudness = audio.createGain();
    loudness.gain.value = 0;
    const tone = audio.createOscillator();
    tone.frequency.value = 1_000;
    tone.connect(loudness).connect(sound);
    tone.start();
    const lasts = 0.1;
    for (let second = Math.ceil(audio.currentTime) + 1; second < 300; second += 1) {
      loudness.gain.setValueAtTime(0.8, second);
      loudness.gain.setValueAtTime(0, second + lasts);
    }
    const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 240 });
    const brush = canvas.getContext("2d");
    setInterval(() => {
      brush.fillStyle = audio.currentTime % 1 < lasts ? "white" : "black";
      brush.fillRect(0, 0, 320, 240);
      // Something moves, so that there always is a new picture.
      brush.fillStyle = "grey";
      brush.fillRect((audio.currentTime * 100) % 320, 230, 10, 10);
    }, 10);
    const { Track } = window.LivekitClient;
    const own = window.room.localParticipant;
    await own.publishTrack(canvas.captureStream(30).getVideoTracks()[0], { source: Track.Source.Camera, simulcast: false });
    await own.publishTrack(sound.stream.getAudioTracks()[0], { source: Track.Source.Microphone, dtx: false });
  });
}

/** Watches and listens to the claps of the only other participant. */
export function listen(page) {
  return page.ask(() => {
    window.claps = { flashes: [], beeps: [] };
    const take = (track) => {
      const element = document.body.appendChild(track.attach());
      if (track.kind === "video") {
        const brush = Object.assign(document.createElement("canvas"), { width: 4, height: 4 }).getContext("2d", { willReadFrequently: true });
        let wasWhite = false;
        const look = (_, { expectedDisplayTime }) => {
          brush.drawImage(element, 0, 0, 4, 4);
          const isWhite = brush.getImageData(1, 1, 1, 1).data[1] > 128;
          if (isWhite && !wasWhite) window.claps.flashes.push(expectedDisplayTime);
          wasWhite = isWhite;
          element.requestVideoFrameCallback(look);
        };
        element.requestVideoFrameCallback(look);
      } else {
        const audio = new AudioContext();
        const ear = audio.createScriptProcessor(256, 1, 1);
        let wasLoud = false;
        ear.onaudioprocess = ({ inputBuffer, playbackTime }) => {
          const samples = inputBuffer.getChannelData(0);
          const first = samples.findIndex((s) => Math.abs(s) > 0.1);
          const { contextTime, performanceTime } = audio.getOutputTimestamp();
          if (first >= 0 && !wasLoud) window.claps.beeps.push(performanceTime + (playbackTime - contextTime + first / audio.sampleRate) * 1_000);
          wasLoud = first >= 0;
        };
        audio.createMediaStreamSource(new MediaStream([track.mediaStreamTrack])).connect(ear).connect(audio.destination);
      }
    };
    window.room.on("trackSubscribed", take);
    for (const participant of window.room.remoteParticipants.values()) participant.trackPublications.forEach((p) => p.track && take(p.track));
  });
}

/**
 * How much later the sound of some claps in a row comes than their picture, milliseconds each. A browser brings the two together
 * step by step while a stream is young: claps count once they lie close together, or when that takes too long.
 */
export async function skews(page, { count = 8, spread = 70, withinMs = 40_000 } = {}) {
  await page.ask(() => (window.claps.flashes.length = window.claps.beeps.length = 0));
  const start = performance.now();
  let last = [];
  await until(`${count} claps are seen and heard`, 60_000, async () => {
    const { flashes, beeps } = await page.ask(() => window.claps);
    const nearest = (flash) => Math.min(...beeps.map((beep) => Math.abs(beep - flash)));
    const found = flashes.filter((flash) => nearest(flash) < 400).map((flash) => Math.round(beeps.find((beep) => Math.abs(beep - flash) === nearest(flash)) - flash));
    last = found.slice(-count);
    const isSettled = Math.max(...last) - Math.min(...last) <= spread;
    return last.length >= count && (isSettled || performance.now() - start > withinMs);
  });
  return last;
}
