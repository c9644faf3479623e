// A receiver of webhooks: verifies each with livekit-server-sdk and prints its event, one JSON line each. Refuses the first
// try of every third one, as a busy application might.

import { createServer } from "node:http";
import { WebhookReceiver } from "livekit-server-sdk";

const [port, key, secret] = process.argv.slice(2);
const receiver = new WebhookReceiver(key, secret);
const refused = new Set();
let seen = 0;

createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  try {
    const event = await receiver.receive(body, request.headers.authorization);
    seen += 1;
    if (seen % 3 === 0 && !refused.has(event.id)) {
      refused.add(event.id);
      response.writeHead(503).end();
      return;
    }
    const { id, room, participant, track } = event;
    console.log(JSON.stringify({ event: event.event, id, room: room?.name, participant: participant?.identity, track: track?.name, type: request.headers["content-type"] }));
    response.end();
  } catch (error) {
    console.log(JSON.stringify({ event: "not verified", error: String(error) }));
    response.writeHead(401).end();
  }
}).listen(Number(port), "127.0.0.1", () => console.log(JSON.stringify({ event: "listening" })));
