// The bytes of docs/protocol.md, read with nothing but Node's standard library: strict msgpack,
// keys, and entries with their ids and signatures. `ledger.mjs` and `peer.mjs` stand on it.

import { createHash, createPublicKey, verify } from "node:crypto";

export const ZERO = "00".repeat(32);
export const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};

// --- strict msgpack ---------------------------------------------------------------------

export class Refused extends Error {}

export function unpack(data) {
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

// What these programs hash or send, in msgpack's shortest forms: text, bytes, lists, maps and
// numbers below 2^32, nil.
export function pack(value) {
  if (value === null) return Buffer.from([0xc0]);
  const sized = (size, short, limit, codes) => {
    if (size < limit) return Buffer.from([short | size]);
    if (codes[0] && size < 256) return Buffer.from([codes[0], size]);
    const two = Buffer.from([codes[1], 0, 0]);
    two.writeUInt16BE(size, 1);
    return two;
  };
  if (typeof value === "number") {
    if (value < 128) return Buffer.from([value]);
    if (value < 256) return Buffer.from([0xcc, value]);
    const four = Buffer.alloc(value < 65536 ? 3 : 5);
    four[0] = value < 65536 ? 0xcd : 0xce;
    four.writeUIntBE(value, 1, four.length - 1);
    return four;
  }
  if (value instanceof Map)
    return Buffer.concat([
      sized(value.size, 0x80, 16, [0, 0xde]),
      ...[...value].flat().map(pack),
    ]);
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

export function isValid(key, text, signature) {
  const name = key.toString("hex");
  if (!verifiers.has(name))
    verifiers.set(
      name,
      createPublicKey({ key: Buffer.concat([KEY_PREFIX, key]), format: "der", type: "spki" }),
    );
  return verify(null, text, verifiers.get(name), signature);
}

export const isSigned = (author, id, signature) =>
  isValid(author, Buffer.concat([Buffer.from("ponyswarm/sig/v1\0"), id]), signature);

export function header(raw) {
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

export function decode(frame) {
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
    signature: frame.subarray(160, 224),
    key: found.author.toString("hex"),
    name: found.id.toString("hex"),
    namespace: found.genesis ? found.id.toString("hex") : found.project,
    payload: map,
  };
}
