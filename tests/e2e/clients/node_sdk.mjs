// A program as the Node SDK's documentation shows it: joins, publishes sound, hears the others, sends text and calls.

import { AudioFrame, AudioSource, AudioStream, LocalAudioTrack, Room, RoomEvent, TrackKind, TrackPublishOptions, TrackSource, dispose } from "@livekit/rtc-node";

const [url, token] = process.argv.slice(2);
const say = (...words) => console.log(words.join(" "));
const room = new Room();
room.on(RoomEvent.TrackSubscribed, async (track, _publication, participant) => {
  if (track.kind !== TrackKind.KIND_AUDIO) return;
  let count = 0;
  for await (const _ of new AudioStream(track)) {
    count += 1;
    if (count === 20) say("received audio", participant.identity);
  }
});
await room.connect(url, token, { autoSubscribe: true, dynacast: true });
say("connected", room.name);
const source = new AudioSource(48000, 1);
const options = new TrackPublishOptions();
options.source = TrackSource.SOURCE_MICROPHONE;
await room.localParticipant.publishTrack(LocalAudioTrack.createAudioTrack("tone", source), options);
say("published");
let running = true;
process.on("SIGTERM", () => (running = false));
await room.localParticipant.sendText("good morning", { topic: "chat" });
const answer = await room.localParticipant.performRpc({ destinationIdentity: "py", method: "greet", payload: "node" });
say("rpc", answer);
for (let at = 0; running; at += 480) {
  const samples = Int16Array.from({ length: 480 }, (_, i) => 9000 * Math.sin(((at + i) * 2 * Math.PI * 330) / 48000));
  await source.captureFrame(new AudioFrame(samples, 48000, 1, 480));
}
await room.disconnect();
say("left");
await dispose();
process.exit(0);
