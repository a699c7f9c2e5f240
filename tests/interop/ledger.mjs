// Reads an exported ledger with nothing but Node's standard library and docs/protocol.md:
// ids, signatures, chains, forks, rights and verdicts, computed without PonySwarm's code.
//
//   node ledger.mjs FILE [AGREEING]
//
// FILE is what `ponyswarm export --frames` writes. Prints one JSON object.

import { readFileSync } from "node:fs";

import { Refused, ZERO, decode, header, isSigned, isValid, pack, sha256 } from "./entries.mjs";

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

// The keys of a line: this one and those it goes on from, the latest first.
function line(key, before) {
  const found = [];
  for (; key !== undefined && !found.includes(key); key = before.get(key)) found.push(key);
  return found;
}

const seat = (key, keys, before) => line(key, before).find((one) => keys.includes(one));

function cosigners(payload) {
  // Defaults are written out by all records here; cosigns are emptied, nothing else changes.
  const record = new Map(payload);
  record.set("cosigns", []);
  const text = Buffer.concat([Buffer.from("ponyswarm/cosign/v1\0"), sha256(pack(record))]);
  return (payload.get("cosigns") ?? [])
    .filter((c) => isValid(c.get("key"), text, c.get("signature")))
    .map((c) => c.get("key").toString("hex"));
}

function rights(entries, project) {
  const order = entries
    .filter((e) => [1, 6, 7, 10, 11].includes(e.kind))
    .sort(
      (a, b) =>
        b.genesis - a.genesis || a.time - b.time || a.seq - b.seq || (a.name < b.name ? -1 : 1),
    );
  const state = {
    records: [],
    revoked: new Map(),
    operators: new Map(),
    vouched: new Map(),
    before: new Map(),
  };
  const proposed = new Map();
  const behind = new Map();
  const isRevoked = (key, time) => (state.revoked.get(key) ?? Infinity) <= time;
  const end = (key, time) =>
    state.revoked.set(key, Math.min(time, state.revoked.get(key) ?? Infinity));
  for (const entry of order) {
    if (entry.genesis) {
      state.records.push({ ...entry, since: 0 });
      continue;
    }
    const record = state.records.at(-1);
    const roots = keysOf(record.payload.get("roots"));
    const isRoot = seat(entry.key, roots, state.before) !== undefined;
    const own = entry.kind === 7 && entry.payload.get("key").toString("hex") === entry.key;
    if (isRevoked(entry.key, entry.time) && !own) continue;
    if ((entry.kind === 1 || entry.kind === 11) && isRoot) {
      const about = entry.kind === 1 ? entry.name : entry.payload.get("record").toString("hex");
      behind.set(about, [...(behind.get(about) ?? []), entry.key]);
      if (entry.kind === 1) proposed.set(about, entry);
      const proposal = proposed.get(about);
      if (!proposal) continue;
      const replaces = proposal.payload.get("replaces");
      if (replaces && replaces.toString("hex") !== record.name) continue;
      const keys = behind.get(about).filter((key) => !isRevoked(key, entry.time));
      const seats = [...keys, ...cosigners(proposal.payload)]
        .map((key) => seat(key, roots, state.before))
        .filter((key) => key !== undefined);
      if (new Set(seats).size >= (record.payload.get("threshold") ?? 1)) {
        state.records.push({ ...proposal, since: entry.time });
        proposed.delete(about);
      }
    } else if (entry.kind === 7) {
      if (own || isRoot) end(entry.payload.get("key").toString("hex"), entry.payload.get("since"));
    } else if (entry.kind === 6) {
      const named = [...roots, ...keysOf(record.payload.get("announcers") ?? [])];
      if (seat(entry.key, named, state.before) !== undefined) {
        const key = entry.payload.get("key").toString("hex");
        state.operators.set(key, entry.payload.get("operator"));
        state.vouched.set(key, entry.time);
      }
    } else if (entry.kind === 10) {
      const heir = entry.payload.get("successor");
      const key = heir.toString("hex");
      const text = Buffer.concat([
        Buffer.from("ponyswarm/rotate/v1\0"),
        sha256(Buffer.from(project, "hex"), entry.author, heir),
      ]);
      const fresh =
        !state.before.has(key) &&
        ![...state.before.values()].includes(entry.key) &&
        !line(entry.key, state.before).includes(key);
      if (fresh && isValid(heir, text, entry.payload.get("signature"))) {
        state.before.set(key, entry.key);
        end(entry.key, entry.time + 1);
      }
    }
  }
  const voice = (key) => {
    const keys = line(key, state.before);
    const vouched = keys.find((one) => state.operators.has(one));
    return vouched ? `operator ${state.operators.get(vouched)}` : `key ${keys.at(-1)}`;
  };
  const recordAt = (time) => state.records.filter((r) => r.since <= time).at(-1).payload;
  return { ...state, isRevoked, voice, recordAt };
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

// Who of these voices committed before any other of them told: those with most partners first.
function blindTogether(voices, pairs) {
  const partners = new Map(
    [...voices].map((v) => [v, [...(pairs.get(v) ?? [])].filter((o) => voices.has(o))]),
  );
  // Keys before operators, each by its bytes, as in the other implementation.
  const order = [...voices].sort(
    (a, b) => partners.get(b).length - partners.get(a).length || (a < b ? -1 : 1),
  );
  const found = [];
  for (const voice of order)
    if (found.every((other) => partners.get(voice).includes(other))) found.push(voice);
  return found;
}

// Which runs count and which say nothing, who could not have copied from whom, and which voices
// nobody need check here, by their record.
function openCommits(results, commits, voice, odds) {
  const held = new Map();
  for (const commit of commits)
    held.set(commit.key, [...(held.get(commit.key) ?? []), commit]);
  const unopened = new Map([...held].map(([key, list]) => [key, new Set(list)]));
  const kept = [];
  const empty = [];
  for (const entry of results) {
    const nonce = entry.payload.get("nonce") ?? Buffer.alloc(0);
    const mine = held.get(entry.key) ?? [];
    let opens = null;
    if (nonce.length) {
      const digest = entry.payload.get("digest");
      const bound = sha256("ponyswarm/commit/v1\0", nonce, digest, entry.author);
      opens = mine.find((commit) => commit.payload.get("commitment").equals(bound)) ?? null;
      if (opens) unopened.get(entry.key).delete(opens);
    }
    if (opens === null && (mine.length || nonce.length)) {
      empty.push(entry.key);
      continue;
    }
    kept.push({ entry, opens });
  }
  const seen = new Map();
  const owner = new Map();
  for (const { entry, opens } of kept) {
    if (entry.payload.get("state") !== "completed") continue;
    const who = voice(entry.key);
    const named = new Set(keysOf(entry.payload.get("seen") ?? []));
    const before = seen.get(who);
    seen.set(who, before ? new Set([...before].filter((id) => named.has(id))) : named);
    if (opens && !unopened.get(entry.key).size) owner.set(opens.name, who);
  }
  const sees = new Map(
    [...seen].map(([who, ids]) => [who, new Set([...ids].map((id) => owner.get(id)))]),
  );
  const pairs = new Map(
    [...sees].map(([who, others]) => [
      who,
      [...others].filter((o) => o !== undefined && o !== who && sees.get(o)?.has(who)),
    ]),
  );
  const spared = new Set(
    commits
      .filter((commit) => held.get(commit.key).length === 1 && isSpared(commit, voice, odds))
      .map((commit) => voice(commit.key)),
  );
  return { kept: kept.map(({ entry }) => entry), empty, pairs, spared };
}

// Whether lot has it that nobody need check the run behind a commit; others' commits draw it.
function isSpared(commit, voice, odds) {
  const who = voice(commit.key);
  const lots = commit.naming.filter((by) => voice(by.key) !== who);
  const isDrawn = (by) =>
    sha256("ponyswarm/sample/v1\0", commit.id, by.id).readBigUInt64BE(0) < odds(who) * 2 ** 64;
  return lots.length > 0 && odds(who) < 1 && !lots.some(isDrawn);
}

function weigh(outcomes, agreeing, isBlind, pairs, spared) {
  const times = new Map();
  for (const { voices } of outcomes)
    for (const who of voices) times.set(who, (times.get(who) ?? 0) + 1);
  const wavers = [...times.values()].some((count) => count > 1);
  const steady = outcomes.map((one) => ({
    ...one,
    steady: new Set([...one.voices].filter((who) => times.get(who) === 1)),
  }));
  steady.sort((a, b) => b.steady.size - a.steady.size || (a.order < b.order ? -1 : 1));
  const [first, next] = steady;
  const agree = first.steady.size;
  const blind = blindTogether(first.steady, pairs).length;
  const support = isBlind ? blind + Math.floor((agree - blind) / 2) : agree;
  const enough = steady.filter((one) => one.voices.size >= Math.max(2, agreeing)).length;
  const isTie = next && next.steady.size === agree;
  let verdict = outcomes.length > 1 ? "disputed" : "unconfirmed";
  if (wavers || enough > 1) verdict = "flaky";
  const stands = support >= agreeing && 2 * agree > times.size && !isTie;
  const onRecord =
    !stands && verdict === "unconfirmed" && [...first.voices].some((who) => spared.has(who));
  if (stands || onRecord) verdict = first.bad ? "confirmed fail" : "confirmed pass";
  return { verdict, agree, of: times.size, blind: blind > 1 ? blind : 0, on_record: onRecord };
}

// The runs that completed: by what they can be compared with, then by outcome.
function grouped(kept, voice) {
  const groups = new Map();
  for (const entry of kept.filter((e) => e.payload.get("state") === "completed")) {
    const counts = entry.payload.get("counts") ?? new Map();
    const bad = (counts.get("failed") ?? 0) + (counts.get("error") ?? 0);
    const total = [...counts.values()].reduce((a, b) => a + b, 0);
    const group = comparable(entry.payload.get("environment"));
    const number = (n) => String(n).padStart(20, "0");
    const order = [entry.payload.get("digest").toString("hex"), number(bad), number(total)].join();
    if (!groups.has(group)) groups.set(group, new Map());
    const outcomes = groups.get(group);
    if (!outcomes.has(order)) outcomes.set(order, { order, bad, voices: new Set(), runs: [] });
    outcomes.get(order).voices.add(voice(entry.key));
    outcomes.get(order).runs.push(voice(entry.key));
  }
  return groups;
}

function judgeCell(results, commits, agreeing, isBlind, voice, odds) {
  const { kept, pairs, spared } = openCommits(results, commits, voice, odds);
  const groups = grouped(kept, voice);
  if (!groups.size) {
    const verdict = kept.length ? "broken" : "pending";
    return { verdict, agree: 0, of: 0, blind: 0, on_record: false };
  }
  const rank = ["unconfirmed", "confirmed pass", "disputed", "flaky", "confirmed fail"];
  const findings = [...groups]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, outcomes]) => weigh([...outcomes.values()], agreeing, isBlind, pairs, spared));
  findings.sort(
    (a, b) =>
      (b.of >= agreeing) - (a.of >= agreeing) ||
      rank.indexOf(b.verdict) - rank.indexOf(a.verdict) ||
      b.agree - a.agree ||
      b.of - a.of,
  );
  return findings[0];
}

// What everybody said of each cell of a job: commits (4) and results (5) that count.
function said(job, entries, forked, state) {
  const disputed = (e) => e.seq >= (forked.get(feedOf(e))?.at ?? Infinity);
  const liars = new Set(
    [...forked.values()]
      .filter((fork) => !((state.vouched.get(fork.author) ?? -1) > fork.time))
      .map((fork) => fork.author),
  );
  const cells = new Map();
  const naming = new Map();
  for (const entry of entries) {
    if (![4, 5].includes(entry.kind) || !entry.payload.get("job").equals(job.id)) continue;
    if (disputed(entry) || state.isRevoked(entry.key, entry.time)) continue;
    for (const id of entry.kind === 4 ? keysOf(entry.payload.get("seen") ?? []) : [])
      naming.set(id, [...(naming.get(id) ?? []), entry]);
    if (liars.has(entry.key)) continue;
    const cell = entry.payload.get("cell").toString("hex");
    if (!cells.has(cell)) cells.set(cell, { 4: [], 5: [] });
    cells.get(cell)[entry.kind].push(entry);
  }
  for (const { 4: commits } of cells.values())
    for (const commit of commits) commit.naming = naming.get(commit.name) ?? [];
  return cells;
}

function checkOf(job, state) {
  const spec = job.payload.get("spec");
  const agreeing = spec.get("redundancy") ?? 2;
  const wish = state.recordAt(job.time).get("cross_check") ?? new Map();
  const isBlind = agreeing > 1 && [spec.get("cross_check"), wish.get("mode")].includes("blind");
  return { agreeing, isBlind };
}

// --- long records -----------------------------------------------------------------------

const LONG_RECORD = 10;
const RECORD_JOBS = 200;

// How likely a run of each voice is checked: by its agreed runs in the latest jobs, back to the
// last one in which a run of it did not stand.
function records(jobs, cellsOf, state) {
  const floor = state.records.at(-1).payload.get("cross_check")?.get("floor");
  const streaks = new Map();
  const ended = new Set();
  const latest = jobs
    .toSorted((a, b) => b.time - a.time || (a.name < b.name ? -1 : 1))
    .slice(0, RECORD_JOBS);
  for (const job of floor === undefined ? [] : latest) {
    const { isBlind } = checkOf(job, state);
    const agreed = [];
    for (const { 4: commits, 5: results } of cellsOf.get(job).values()) {
      const { kept, empty, pairs } = openCommits(results, commits, state.voice, () => 1);
      for (const key of empty) ended.add(state.voice(key));
      for (const outcomes of grouped(kept, state.voice).values()) {
        const ranked = [...outcomes.values()].sort((a, b) => b.voices.size - a.voices.size);
        const everyone = new Set(ranked.flatMap((one) => one.runs)).size;
        const [most, ...rest] = ranked;
        if (everyone === 1 || 2 * most.voices.size <= everyone) continue;
        for (const one of rest) for (const who of one.runs) ended.add(who);
        const blind = isBlind ? blindTogether(most.voices, pairs) : [...most.voices];
        if (blind.length > 1) agreed.push(...most.runs.filter((who) => blind.includes(who)));
      }
    }
    for (const who of agreed.filter((one) => !ended.has(one)))
      streaks.set(who, (streaks.get(who) ?? 0) + 1);
  }
  return (who) => {
    const streak = streaks.get(who) ?? 0;
    const isLong = who.startsWith("operator ") && streak >= LONG_RECORD;
    return isLong ? Math.max(floor / 100, 1 / streak) : 1;
  };
}

function judge(entries, forked, state) {
  const jobs = entries.filter((e) => e.kind === 2);
  const cellsOf = new Map(jobs.map((job) => [job, said(job, entries, forked, state)]));
  const odds = records(jobs, cellsOf, state);
  const found = {};
  for (const job of jobs) {
    const { agreeing, isBlind } = checkOf(job, state);
    found[job.name] = Object.fromEntries(
      [...cellsOf.get(job)].map(([cell, { 4: commits, 5: results }]) => [
        cell,
        judgeCell(results, commits, agreeing, isBlind, state.voice, isBlind ? odds : () => 1),
      ]),
    );
  }
  return found;
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
  Object.assign(jobs, judge(mine, forked, rights(standing, project)));
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
