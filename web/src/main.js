// The page: join, see and hear each other, and see which way the media takes.

import { connection, ownPath, Rates, stats } from "./peers.js";
import { ConnectionState, DisconnectReason, Room, RoomEvent, Track } from "livekit-client";
import { caption, hideVideo, mark, removeAllTiles, removeTile, show, showVideo, tile } from "./grid.js";
import { joinTrouble, leftBecause, mediaTrouble } from "./words.js";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const fragment = new URLSearchParams(location.hash.slice(1));
const STATS_EVERY_MS = 2000;
const STATS_TOPIC = "postern.rtt";

let room;
let rates = new Rates();
let timer;
const remoteRtt = new Map();

$("name").value = query.get("name") ?? localStorage.getItem("name") ?? "";
$("room").value = query.get("room") ?? localStorage.getItem("room") ?? "lobby";
$("with-mic").checked = query.get("mic") !== "0";
$("with-camera").checked = query.get("camera") !== "0";

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  join();
});

/** A token from the address (#token=…), from the field, or in development from the server itself. */
async function fetchToken(name) {
  const given = fragment.get("token") || $("token").value.trim();
  if (given) return given;
  const response = await fetch(`/dev/token?${new URLSearchParams({ room: name.room, identity: name.identity })}`);
  if (response.ok) return (await response.json()).token;
  $("token-field").hidden = false;
  $("token").required = true;
  throw new Error("This server asks for a token. Paste yours, or open the link that you were sent.");
}

async function join() {
  const name = { room: $("room").value.trim(), identity: $("name").value.trim() };
  localStorage.setItem("name", name.identity);
  localStorage.setItem("room", name.room);
  $("trouble").hidden = true;
  $("join-button").disabled = true;
  $("join-button").textContent = "Joining …";
  try {
    const token = await fetchToken(name);
    const videoCodec = query.get("codec") ?? undefined;
    room = new Room({ adaptiveStream: query.get("adaptive") !== "0", dynacast: false, publishDefaults: { videoCodec } });
    window.postern = { room, stats, connection };
    listen(room);
    const rtcConfig = query.get("relay") === "1" ? { iceTransportPolicy: "relay" } : undefined;
    await room.connect(location.origin.replace(/^http/, "ws"), token, { rtcConfig });
    enter();
    await publish();
  } catch (error) {
    $("trouble").textContent = error.message?.startsWith("This server asks") ? error.message : joinTrouble(error);
    $("trouble").hidden = false;
    await room?.disconnect();
  } finally {
    $("join-button").disabled = false;
    $("join-button").textContent = "Join";
  }
}

function enter() {
  $("lobby").hidden = true;
  $("call").hidden = false;
  $("title").textContent = room.name;
  tile(room.localParticipant);
  for (const participant of room.remoteParticipants.values()) tile(participant);
  count();
  timer = setInterval(measure, STATS_EVERY_MS);
  measure();
}

async function publish() {
  const own = room.localParticipant;
  // Each on its own: who has no camera still has a voice.
  if ($("with-mic").checked) await own.setMicrophoneEnabled(true).catch((e) => notice(mediaTrouble(e, "microphone")));
  if ($("with-camera").checked) await own.setCameraEnabled(true).catch((e) => notice(mediaTrouble(e, "camera")));
  buttons();
}

const kindOf = (publication) => (publication.source === Track.Source.ScreenShare ? "screen" : "camera");

function listen(room) {
  room
    .on(RoomEvent.ParticipantConnected, (participant) => {
      tile(participant);
      count();
    })
    .on(RoomEvent.ParticipantDisconnected, (participant) => {
      removeTile(participant);
      remoteRtt.delete(participant.identity);
      count();
    })
    .on(RoomEvent.TrackSubscribed, (track, publication, participant) => {
      show(participant, track, kindOf(publication));
      mark(participant, { muted: !participant.isMicrophoneEnabled });
    })
    .on(RoomEvent.TrackUnsubscribed, (track, publication, participant) => {
      for (const element of track.detach()) element.remove();
      if (kindOf(publication) === "screen") removeTile(participant, "screen");
      else if (track.kind === Track.Kind.Video) hideVideo(participant);
    })
    .on(RoomEvent.LocalTrackPublished, (publication, participant) => {
      if (publication.track?.kind === Track.Kind.Video) show(participant, publication.track, kindOf(publication));
      buttons();
    })
    .on(RoomEvent.LocalTrackUnpublished, (publication, participant) => {
      if (kindOf(publication) === "screen") removeTile(participant, "screen");
      buttons();
    })
    .on(RoomEvent.TrackMuted, (publication, participant) => muted(publication, participant, true))
    .on(RoomEvent.TrackUnmuted, (publication, participant) => muted(publication, participant, false))
    .on(RoomEvent.ActiveSpeakersChanged, (speakers) => {
      const sids = new Set(speakers.map((s) => s.sid));
      for (const participant of [room.localParticipant, ...room.remoteParticipants.values()]) {
        mark(participant, { speaking: sids.has(participant.sid) });
      }
    })
    .on(RoomEvent.DataReceived, (payload, participant, _kind, topic) => {
      if (topic === STATS_TOPIC && participant) remoteRtt.set(participant.identity, Number(new TextDecoder().decode(payload)));
    })
    .on(RoomEvent.ConnectionStateChanged, (state) => {
      if (state === ConnectionState.Reconnecting || state === ConnectionState.SignalReconnecting) notice("The connection was interrupted. Reconnecting …");
      else if (state === ConnectionState.Connected) notice();
    })
    .on(RoomEvent.Disconnected, (reason) => left(DisconnectReason[reason]));
}

function muted(publication, participant, isMuted) {
  if (publication.source === Track.Source.Microphone) mark(participant, { muted: isMuted });
  else if (isMuted) hideVideo(participant, kindOf(publication));
  else showVideo(participant, kindOf(publication));
  buttons();
}

function count() {
  const n = room.remoteParticipants.size + 1;
  $("count").textContent = n === 1 ? "Only you so far" : `${n} people`;
}

function notice(text) {
  $("notice").textContent = text ?? "";
  $("notice").hidden = !text;
}

function left(reason) {
  clearInterval(timer);
  $("call").hidden = true;
  $("lobby").hidden = false;
  removeAllTiles();
  notice();
  rates = new Rates();
  const words = leftBecause(reason);
  $("trouble").textContent = words ?? "";
  $("trouble").hidden = !words;
}

function buttons() {
  const own = room.localParticipant;
  $("mic").setAttribute("aria-pressed", String(own.isMicrophoneEnabled));
  $("mic").childNodes[1].textContent = own.isMicrophoneEnabled ? "Mute" : "Unmute";
  $("camera").setAttribute("aria-pressed", String(own.isCameraEnabled));
  $("screen").setAttribute("aria-pressed", String(own.isScreenShareEnabled));
  mark(own, { muted: !own.isMicrophoneEnabled });
}

const actions = {
  mic: () => room.localParticipant.setMicrophoneEnabled(!room.localParticipant.isMicrophoneEnabled),
  camera: () => room.localParticipant.setCameraEnabled(!room.localParticipant.isCameraEnabled),
  screen: () => room.localParticipant.setScreenShareEnabled(!room.localParticipant.isScreenShareEnabled),
  leave: () => room.disconnect(),
};
const nameOf = { mic: "microphone", camera: "camera", screen: "screen" };

async function act(what) {
  try {
    await actions[what]();
  } catch (error) {
    notice(mediaTrouble(error, nameOf[what] ?? what));
  }
  if (!$("call").hidden) buttons();
}

for (const what of Object.keys(actions)) $(what).addEventListener("click", () => act(what));

addEventListener("keydown", (event) => {
  if ($("call").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const what = { m: "mic", v: "camera", s: "screen", l: "leave" }[event.key.toLowerCase()];
  if (what) act(what);
});

/** Reads the browser's figures and writes them below the names. */
async function measure() {
  const rows = await stats();
  const own = ownPath(rows);
  const streams = rows.filter((row) => row.type === "inbound-rtp" || row.type === "outbound-rtp");
  const measured = new Map(streams.map((row) => [row, rates.of(row)]));
  const reports = rows.filter((row) => row.type === "remote-inbound-rtp");
  const sum = (some) => some.reduce((total, row) => total + (measured.get(row)?.kbps ?? 0), 0);
  if (own) {
    $("own-path").textContent = own.path;
    const sent = streams.filter((row) => row.type === "outbound-rtp");
    const lost = reports.length ? Math.max(...reports.map((row) => (row.fractionLost ?? 0) * 100)) : 0;
    caption(room.localParticipant, own.path, figures(own.rttMs, lost, sum(sent), "↑"));
    if (room.localParticipant.permissions?.canPublishData !== false) {
      const payload = new TextEncoder().encode(String(own.rttMs));
      room.localParticipant.publishData(payload, { reliable: false, topic: STATS_TOPIC }).catch(() => {});
    }
  }
  for (const participant of room.remoteParticipants.values()) {
    const ids = new Set([...participant.trackPublications.values()].map((p) => p.track?.mediaStreamTrack?.id).filter(Boolean));
    const received = streams.filter((row) => row.type === "inbound-rtp" && ids.has(row.trackIdentifier));
    const lost = received.length ? Math.max(...received.map((row) => measured.get(row).lossPercent)) : 0;
    caption(participant, participant.attributes["postern.path"], figures(remoteRtt.get(participant.identity), lost, sum(received), "↓"));
  }
}

function figures(rttMs, lossPercent, kbps, arrow) {
  const rate = kbps >= 1000 ? `${(kbps / 1000).toFixed(1)} Mbit/s` : `${Math.round(kbps)} kbit/s`;
  const rtt = rttMs === undefined ? "" : `${rttMs} ms · `;
  return `${rtt}${lossPercent.toFixed(1)} % lost · ${arrow} ${rate}`;
}

if (query.get("join") === "1") join();
