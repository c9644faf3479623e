// An application's back end: livekit-server-sdk as documented. Calls come as JSON lines on stdin, answers leave on stdout.

import { createInterface } from "node:readline";
import { RoomServiceClient } from "livekit-server-sdk";

const [url, key, secret] = process.argv.slice(2);
const service = new RoomServiceClient(url, key, secret);
const revive = (_, value) => (value?.bytes ? new TextEncoder().encode(value.bytes) : value);
const plain = (_, value) => (typeof value === "bigint" ? Number(value) : value);

for await (const line of createInterface({ input: process.stdin })) {
  const { method, args } = JSON.parse(line, revive);
  const answer = await service[method](...args).then(
    (value) => ({ value: value?.toJson?.() ?? (Array.isArray(value) ? value.map((v) => v.toJson()) : null) }),
    (error) => ({ error: { code: error.code, status: error.status, message: error.message } }),
  );
  process.stdout.write(`${JSON.stringify(answer, plain)}\n`);
}
