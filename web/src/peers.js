// What the browser says about its connections: path, round-trip time, loss, bitrate. Standard getStats() only.
// Connections are noted as they are made, so that no private part of any library is touched.

const Native = window.RTCPeerConnection;
const connections = new Set();

window.RTCPeerConnection = class extends Native {
  constructor(...args) {
    super(...args);
    connections.add(this);
    this.addEventListener("connectionstatechange", () => {
      if (this.connectionState === "closed") connections.delete(this);
    });
  }
};

/** The connection in use: the newest one that is not closed. */
export function connection() {
  return [...connections].filter((pc) => pc.connectionState !== "closed").at(-1);
}

/** All stats of the connection in use, as an array. */
export async function stats() {
  const pc = connection();
  return pc ? [...(await pc.getStats()).values()] : [];
}

/** How media leaves this browser: { path, rttMs } or undefined before there is a selected pair. */
export function ownPath(rows) {
  const byId = new Map(rows.map((row) => [row.id, row]));
  const transport = rows.find((row) => row.type === "transport" && row.selectedCandidatePairId);
  const pair = transport
    ? byId.get(transport.selectedCandidatePairId)
    : rows.find((row) => row.type === "candidate-pair" && row.nominated && row.state === "succeeded" && row.selected !== false);
  if (!pair) return undefined;
  const local = byId.get(pair.localCandidateId);
  const kind = local?.candidateType === "relay" ? `relay/${local.relayProtocol ?? local.protocol}` : local?.protocol;
  return { path: kind, rttMs: Math.round((pair.currentRoundTripTime ?? 0) * 1000) };
}

/** Differences between two readings of a stream: bitrate in kbit/s and loss in per cent. */
export class Rates {
  #before = new Map();

  of(row) {
    const bytes = row.bytesReceived ?? row.bytesSent ?? 0;
    const packets = row.packetsReceived ?? row.packetsSent ?? 0;
    const lost = row.packetsLost ?? 0;
    const before = this.#before.get(row.id);
    this.#before.set(row.id, { at: row.timestamp, bytes, packets, lost });
    if (!before || row.timestamp <= before.at) return { kbps: 0, lossPercent: 0 };
    const arrived = packets - before.packets;
    const missing = Math.max(0, lost - before.lost);
    return {
      kbps: ((bytes - before.bytes) * 8) / (row.timestamp - before.at),
      lossPercent: arrived + missing > 0 ? (100 * missing) / (arrived + missing) : 0,
    };
  }
}
