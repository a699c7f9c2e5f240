// A peer of the swarm on js-libp2p (Node.js 22 or later), written from docs/protocol.md alone.
//
//   node peer.mjs ADDRESS PROJECT
//
// Connects to ADDRESS, syncs PROJECT from it, then waits for a job announced by gossip, checks
// its signature and fetches its source. Prints one JSON object a line: "synced", "joined",
// "heard" and "fetched", with what it saw.

import { inflateSync } from "node:zlib";

import { noise } from "@chainsafe/libp2p-noise";
import { yamux } from "@chainsafe/libp2p-yamux";
import { gossipsub } from "@libp2p/gossipsub";
import { identify } from "@libp2p/identify";
import { ping } from "@libp2p/ping";
import { tcp } from "@libp2p/tcp";
import { byteStream } from "@libp2p/utils";
import { multiaddr } from "@multiformats/multiaddr";
import { createLibp2p } from "libp2p";

import { ZERO, decode, isSigned, pack, sha256, unpack } from "./entries.mjs";

const BUCKETS = 64;
const GENESIS = 1;
const say = (what, facts = {}) => console.log(JSON.stringify({ what, ...facts }));

// --- a stream's messages: a length in 4 bytes, and the bytes ----------------------------

async function open(connection, protocol) {
  const stream = await connection.newStream(protocol);
  const bytes = byteStream(stream);
  const exactly = async (count) =>
    count ? Buffer.from((await bytes.read({ bytes: count })).subarray()) : Buffer.alloc(0);
  return {
    send: (message) => {
      const size = Buffer.alloc(4);
      size.writeUInt32BE(message.length);
      return bytes.write(Buffer.concat([size, message]));
    },
    receive: async () => exactly((await exactly(4)).readUInt32BE()),
    close: () => stream.close(),
  };
}

// --- /ponyswarm/sync/1, asked by someone who has nothing --------------------------------

const EMPTY = sha256();

function* entriesOf(data, project) {
  let at = 0;
  const take = (count) => {
    if (at + count > data.length) throw new Error("a segment ends too soon");
    at += count;
    return data.subarray(at - count, at);
  };
  const number = () => {
    let found = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = take(1)[0];
      found |= BigInt(byte & 127) << shift;
      if (byte < 128) return found;
    }
  };
  while (at < data.length) {
    const [author, nonce, genesis] = [take(32), take(8), take(1)[0] === 1];
    let seq = number();
    let prev = seq ? take(32) : Buffer.from(ZERO, "hex");
    let time = 0n;
    const heads = Array.from({ length: Number(number()) }, () => {
      const kind = take(1)[0];
      const size = Number(number());
      return { kind, size, time: (time += number()) };
    });
    const signatures = heads.map(() => take(64));
    for (const [place, head] of heads.entries()) {
      const payload = take(head.size);
      const raw = Buffer.alloc(160);
      raw[0] = 1;
      raw[1] = head.kind;
      raw.writeUInt32BE(head.size, 4);
      author.copy(raw, 8);
      if (!genesis) project.copy(raw, 40);
      nonce.copy(raw, 72);
      raw.writeBigUInt64BE(seq++, 80);
      prev.copy(raw, 88);
      raw.writeBigUInt64BE(head.time, 120);
      sha256(payload).copy(raw, 128);
      prev = sha256("ponyswarm/entry/v1\0", raw);
      yield Buffer.concat([raw, signatures[place], payload]);
    }
  }
}

async function sync(connection, project) {
  const stream = await open(connection, "/ponyswarm/sync/1");
  const root = sha256(...Array(BUCKETS).fill(EMPTY)).subarray(0, 16);
  await stream.send(Buffer.concat([project, root]));
  const answer = await stream.receive();
  if (answer[0] !== 2) throw new Error(`the peer has nothing to tell: ${answer[0]}`);
  let wanted = 0n;
  let count = 0;
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    const start = 1 + 12 * bucket;
    if (answer.subarray(start + 4, start + 12).equals(EMPTY.subarray(0, 8))) continue;
    wanted |= 1n << BigInt(bucket);
    count++;
  }
  const maps = Buffer.alloc(16);
  maps.writeBigUInt64BE(wanted, 8);
  await stream.send(Buffer.concat([maps, Buffer.alloc(count)]));
  const found = [];
  for (;;) {
    const message = await stream.receive();
    if (message[0] === 0) break;
    for (const frame of entriesOf(inflateSync(message.subarray(1)), project))
      found.push(decode(frame));
  }
  await stream.close();
  return found;
}

// --- /ponyswarm/blob/1 ------------------------------------------------------------------

async function fetchBlob(connection, hash, size) {
  const parts = [];
  for (let offset = 0; offset < size; ) {
    const stream = await open(connection, "/ponyswarm/blob/1");
    const length = Math.min(size - offset, 2 ** 20);
    await stream.send(
      pack(
        new Map([
          ["hash", hash],
          ["offset", offset],
          ["length", length],
        ]),
      ),
    );
    const has = unpack(await stream.receive()).get("size");
    if (has !== size) throw new Error(`the peer has ${has} bytes of the blob, not ${size}`);
    for (let got = 0; got < length; ) {
      const part = await stream.receive();
      parts.push(part);
      got += part.length;
      offset += part.length;
    }
    await stream.close();
  }
  const blob = Buffer.concat(parts);
  if (!sha256(blob).equals(hash)) throw new Error("the blob's hash is wrong");
  return blob;
}

// --- all of it --------------------------------------------------------------------------

const [address, name] = process.argv.slice(2);
const project = Buffer.from(name, "hex");
const topic = `/ponyswarm/1/p/${name}`;
const host = await createLibp2p({
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping(), pubsub: gossipsub() },
});
const pubsub = host.services.pubsub;
// Gossip also repeats what was said a while ago: only a job that sync did not bring is news.
const known = new Set();
const heard = new Promise((resolve) =>
  pubsub.addEventListener("message", ({ detail }) => {
    if (detail.topic !== topic || detail.data[0] !== 1) return;
    const entry = decode(Buffer.from(detail.data.subarray(1)));
    if (entry.kind === 2 && !known.has(entry.name)) resolve({ entry, origin: detail.from.toString() });
  }),
);
const connection = await host.dial(multiaddr(address));

const entries = await sync(connection, project);
for (const entry of entries) known.add(entry.name);
say("synced", {
  ids: entries.map((entry) => entry.name),
  genesis: entries[0].genesis && entries[0].name === name && entries[0].kind === GENESIS,
});

pubsub.subscribe(topic);
while (!pubsub.getSubscribers(topic).length) await new Promise((done) => setTimeout(done, 50));
say("joined", { peer: host.peerId.toString() });

const { entry, origin } = await heard;
say("heard", {
  job: entry.name,
  origin,
  signed: isSigned(entry.author, entry.id, entry.signature),
});
const blob = await fetchBlob(
  connection,
  entry.payload.get("source"),
  entry.payload.get("source_size"),
);
say("fetched", { sha256: sha256(blob).toString("hex"), bytes: blob.length });
await host.stop();
process.exit(0);
