// Garbage, oversized and half-valid requests and frames of every kind, from a seed. Prints what came back, as JSON.

import { SignalRequest } from "@livekit/protocol";
import { request } from "node:https";
import WebSocket from "ws";

const [host, token, seed] = process.argv.slice(2);
let state = Number(seed) >>> 0 || 1;
const dice = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
};
const bytes = (n) => Buffer.from(Array.from({ length: n }, () => dice(256)));
const pick = (list) => list[dice(list.length)];
const text = () => pick(["", "x", "\u0000", "💥".repeat(100), "a".repeat(300), "a".repeat(70_000), "../../etc/passwd", "%s%n", "null"]);

function http(method, path, headers = {}, body) {
  return new Promise((resolve) => {
    // Each on a connection of its own: a body without a length is the next request to whoever reads it.
    const one = request({ host, method, path, headers, timeout: 20_000, agent: false }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode));
    });
    one.on("timeout", () => one.destroy(new Error("no answer")));
    one.on("error", (error) => resolve(error.code ?? error.message));
    one.end(body);
  });
}

const methods = ["CreateRoom", "ListRooms", "DeleteRoom", "ListParticipants", "GetParticipant", "RemoveParticipant", "MutePublishedTrack", "UpdateParticipant", "UpdateSubscriptions", "SendData", "UpdateRoomMetadata", "ForwardParticipant", "MoveParticipant", "PerformRpc", "Nothing"];
const tokens = () => pick([token, token, token, "a.b.c", bytes(20).toString("base64"), `${token}x`, ""]);
const requests = [
  () => http("POST", `/twirp/livekit.RoomService/${pick(methods)}`, { authorization: `Bearer ${tokens()}`, "content-type": pick(["application/json", "application/protobuf", "text/plain"]) }, pick([bytes(dice(300)), "{", "[]", "null", JSON.stringify({ room: text(), identity: text(), name: text(), metadata: text(), track_sid: text(), muted: pick([true, 1, "x"]), nonsense: {} })])),
  () => http("POST", `/${pick(["whip", "whep"])}/v1`, { authorization: `Bearer ${tokens()}`, "content-type": pick(["application/sdp", "text/html"]) }, pick([bytes(dice(2_000)), "v=0\r\n", "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n", "a".repeat(400_000)])),
  () => http(pick(["PATCH", "DELETE", "GET", "PUT"]), `/whip/v1/${encodeURIComponent(text()).slice(0, 200)}`, { authorization: `Bearer ${tokens()}`, "if-match": pick(["*", '"x"', ""]), "content-type": "application/trickle-ice-sdpfrag" }, text()),
  () => http("GET", `/rtc${pick(["", "/v1"])}/validate?access_token=${tokens()}&join_request=${encodeURIComponent(bytes(dice(400)).toString("base64"))}&attributes=${encodeURIComponent(bytes(9).toString("base64"))}`),
  () => http(pick(["GET", "POST", "OPTIONS", "HEAD"]), `/${encodeURIComponent(text()).slice(0, 4_000)}`),
];

/** Frames that a client might send: random, or of the right kind with wrong things in it. */
function frame() {
  const sdp = () => ({ type: pick(["offer", "answer", "rollback", ""]), sdp: pick(["", "v=0", text(), "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 x 1\r\na=mid:0\r\n"]), id: dice(5) });
  const messages = [
    { case: "offer", value: sdp() },
    { case: "answer", value: sdp() },
    { case: "trickle", value: { candidateInit: text() } },
    { case: "addTrack", value: { cid: text(), name: text(), type: dice(9), source: dice(99), layers: Array.from({ length: dice(50) }, () => ({ quality: dice(9), width: dice(2 ** 31) })) } },
    { case: "mute", value: { sid: text(), muted: true } },
    { case: "subscription", value: { trackSids: Array.from({ length: dice(200) }, text), subscribe: true } },
    { case: "trackSetting", value: { trackSids: [text()], quality: dice(9), width: dice(2 ** 31), fps: dice(999) } },
    { case: "updateMetadata", value: { name: text(), metadata: text(), attributes: { [text()]: text() }, requestId: dice(99) } },
    { case: "subscriptionPermission", value: { trackPermissions: Array.from({ length: dice(3_000) }, () => ({ trackSids: [text().slice(0, 9), "x"] })) } },
    { case: "syncState", value: { trackSidsDisabled: [text()], subscription: { trackSids: [text()] } } },
    { case: "publishDataTrackRequest", value: { pubHandle: dice(70_000), name: text() } },
    { case: "unpublishDataTrackRequest", value: { pubHandle: dice(70_000) } },
    { case: "updateDataSubscription", value: { updates: [{ trackSid: text(), subscribe: true }] } },
    { case: "updateVideoTrack", value: { trackSid: text(), width: 1, height: 1 } },
    { case: "simulate", value: { scenario: { case: "speakerUpdate", value: 3 } } },
  ];
  const whole = Buffer.from(new SignalRequest({ message: pick(messages) }).toBinary());
  const kind = dice(10);
  if (kind === 0) return bytes(dice(500));
  if (kind === 1) return whole.subarray(0, dice(whole.length));
  if (kind === 2) return pick(["", "{", '{"offer":7}', '{"mute":{"sid":"x"}}', text()]);
  if (kind === 3 && dice(10) === 0) return Buffer.alloc(3 * 1024 * 1024, 1);
  return whole;
}

/** One connection: sends frames and a ping, until it is closed or has its answer. */
function converse(frames) {
  return new Promise((resolve) => {
    const socket = new WebSocket(`wss://${host}/rtc?access_token=${token}&protocol=16`);
    const timer = setTimeout(() => resolve("no answer"), 20_000);
    const end = (what) => {
      clearTimeout(timer);
      socket.terminate();
      resolve(what);
    };
    socket.on("open", () => {
      for (const one of frames) socket.send(one);
      socket.send(Buffer.from(new SignalRequest({ message: { case: "ping", value: 1n } }).toBinary()));
    });
    // Pong is field 18 of SignalResponse, an integer; after text frames it comes as text.
    socket.on("message", (data, isBinary) => {
      if (isBinary ? data[0] === 0x90 && data[1] === 0x01 : data.toString().includes('"pong"')) end("pong");
    });
    socket.on("close", (code) => end(`closed ${code}`));
    socket.on("error", (error) => end(error.message));
    socket.on("unexpected-response", (_, response) => end(`status ${response.statusCode}`));
  });
}

// A connection that the server has closed while something large is still being written.
process.on("uncaughtException", (error) => {
  if (error.code !== "EPIPE" && error.code !== "ECONNRESET") throw error;
});

const counts = {};
const count = (what) => (counts[what] = (counts[what] ?? 0) + 1);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
// An address may ask a hundred times a second.
for (let i = 0; i < 600; i += 20) {
  for (const status of await Promise.all(Array.from({ length: 20 }, () => pick(requests)()))) count(`http ${status}`);
  await pause(220);
}
// Each join counts against the limit of one identity: ten a second.
for (let i = 0; i < 40; i += 1) {
  count(`signal ${await converse(Array.from({ length: 10 }, frame))}`);
  await pause(110);
}
console.log(JSON.stringify(counts));
