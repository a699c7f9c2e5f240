-- The ledger. Frames are the truth; every other column is derived from them and can be
-- rebuilt. Read it with sqlite3, sqlite-utils or Datasette: start with the views.

CREATE TABLE IF NOT EXISTS author (
    author INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    peer_id TEXT NOT NULL
);

-- One row a feed. "height" counts its entries; "forked_at" is the first disputed seq.
CREATE TABLE IF NOT EXISTS feed (
    feed INTEGER PRIMARY KEY,
    author INTEGER NOT NULL REFERENCES author,
    project BLOB NOT NULL,
    genesis INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    height INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    head BLOB NOT NULL,
    head_time INTEGER NOT NULL,
    forked_at INTEGER,
    UNIQUE (project, author, nonce, genesis)
);

-- "frame" is header, signature and payload as they came. Old results lose their payloads on
-- nodes that do not keep everything: then it ends after 224 bytes.
-- "prefix" is the first 8 bytes of the id as a signed integer: a short index finds any id.
-- "auth" says how the entry is known to be its author's. 1: its own signature was checked.
-- 0: a later entry of its feed, whose signature was checked, commits to it; its own is
-- checked when there is time. 2: as 0, but its own signature is junk: it stands in its feed
-- and is never quoted alone.
CREATE TABLE IF NOT EXISTS entry (
    arrival INTEGER PRIMARY KEY,
    feed INTEGER NOT NULL REFERENCES feed,
    seq INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    time INTEGER NOT NULL,
    prefix INTEGER NOT NULL,
    auth INTEGER NOT NULL,
    id BLOB NOT NULL,
    frame BLOB NOT NULL,
    UNIQUE (feed, seq)
);
-- In stretches of 65,536 arrivals: new entries all go into the last one, which fits in memory,
-- where an index over all would have every entry write a page of its own. The statistics below
-- tell SQLite that "WHERE prefix = ?" may jump from stretch to stretch.
CREATE INDEX IF NOT EXISTS entry_prefix ON entry (arrival >> 16, prefix);
CREATE INDEX IF NOT EXISTS entry_bare ON entry (time) WHERE length(frame) = 224;
CREATE INDEX IF NOT EXISTS entry_unchecked ON entry (arrival) WHERE auth = 0;
-- Entries but results (kind 5), which are most: say "kind != 5" to have it used.
CREATE INDEX IF NOT EXISTS entry_said ON entry (feed, kind) WHERE kind != 5;

-- The two signed headers that prove a fork, kept even before the feed itself is known.
CREATE TABLE IF NOT EXISTS fork_evidence (
    author BLOB NOT NULL,
    project BLOB NOT NULL,
    nonce BLOB NOT NULL,
    seq INTEGER NOT NULL,
    first BLOB NOT NULL,
    first_signature BLOB NOT NULL,
    second BLOB NOT NULL,
    second_signature BLOB NOT NULL,
    PRIMARY KEY (project, author, nonce, seq)
) WITHOUT ROWID;

-- Which forks the `fork` entries here tell of: the place that their two headers are for.
CREATE TABLE IF NOT EXISTS fork_told (
    project BLOB NOT NULL,
    author BLOB NOT NULL,
    nonce BLOB NOT NULL,
    seq INTEGER NOT NULL,
    arrival INTEGER NOT NULL REFERENCES entry,
    PRIMARY KEY (project, author, nonce, seq, arrival)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS project (
    project BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    updated INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS job (
    job BLOB PRIMARY KEY,
    project BLOB NOT NULL,
    author INTEGER NOT NULL REFERENCES author,
    title TEXT NOT NULL,
    "commit" TEXT NOT NULL,
    source BLOB NOT NULL,
    announced INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    redundancy INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS job_project ON job (project, announced);
CREATE INDEX IF NOT EXISTS job_commit ON job ("commit") WHERE "commit" != '';
CREATE INDEX IF NOT EXISTS job_title ON job (title);

-- A withdrawal may arrive before the job that it ends.
CREATE TABLE IF NOT EXISTS withdrawal (
    project BLOB NOT NULL,
    job BLOB NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (project, job)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS cell (
    job BLOB NOT NULL REFERENCES job,
    cell BLOB NOT NULL,
    position INTEGER NOT NULL,
    python TEXT NOT NULL,
    services TEXT NOT NULL,
    factors TEXT NOT NULL,
    PRIMARY KEY (job, cell)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cell_id ON cell (cell);

-- What runs ran on, each once: volunteers say the same in all their results. Runs are
-- compared where "comparable" is equal.
CREATE TABLE IF NOT EXISTS environment (
    environment INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    comparable BLOB NOT NULL,
    UNIQUE (comparable, text)
);

-- What results are about, each once: a cell of a job, which may come after its results.
CREATE TABLE IF NOT EXISTS target (
    target INTEGER PRIMARY KEY,
    job BLOB NOT NULL,
    cell BLOB NOT NULL,
    UNIQUE (job, cell)
);

-- What runs gave, each once: honest runs of the same tests give the same.
CREATE TABLE IF NOT EXISTS outcome (
    outcome INTEGER PRIMARY KEY,
    digest BLOB NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    passed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    total INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS outcome_said
ON outcome (digest, state, ifnull(reason, ''), passed, failed, skipped, total);

-- One row a result entry, as numbers; the view "result" spells them out.
CREATE TABLE IF NOT EXISTS run (
    target INTEGER NOT NULL REFERENCES target,
    author INTEGER NOT NULL REFERENCES author,
    arrival INTEGER NOT NULL REFERENCES entry,
    outcome INTEGER NOT NULL REFERENCES outcome,
    environment INTEGER NOT NULL REFERENCES environment,
    seconds REAL NOT NULL,
    PRIMARY KEY (target, author, arrival)
) WITHOUT ROWID;

-- How much each author's runs are, kept up with "run" so that nobody need count it.
CREATE TABLE IF NOT EXISTS volunteer (
    author INTEGER PRIMARY KEY REFERENCES author,
    results INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    broken INTEGER NOT NULL,
    tests INTEGER NOT NULL
);

CREATE VIEW IF NOT EXISTS result AS
SELECT target.job, target.cell, run.author, run.arrival, outcome.state, outcome.reason,
       outcome.passed, outcome.failed, outcome.skipped, outcome.total, outcome.digest,
       run.environment, run.seconds
FROM target JOIN run USING (target) JOIN outcome USING (outcome);

-- Commits: who bound itself to an outcome of a cell before telling it. "seen" has the ids of
-- commits to other cells that it names, one after another.
CREATE TABLE IF NOT EXISTS sealed (
    job BLOB NOT NULL,
    cell BLOB NOT NULL,
    author INTEGER NOT NULL REFERENCES author,
    arrival INTEGER NOT NULL REFERENCES entry,
    id BLOB NOT NULL,
    commitment BLOB NOT NULL,
    time INTEGER NOT NULL,
    seen BLOB NOT NULL,
    PRIMARY KEY (job, cell, author, arrival)
) WITHOUT ROWID;

-- Results with a nonce: the commitment that it gives, and the ids of others' commits that
-- the result names, one after another.
CREATE TABLE IF NOT EXISTS opening (
    job BLOB NOT NULL,
    cell BLOB NOT NULL,
    arrival INTEGER NOT NULL REFERENCES entry,
    opens BLOB NOT NULL,
    seen BLOB NOT NULL,
    PRIMARY KEY (job, cell, arrival)
) WITHOUT ROWID;

-- Tests that failed or erred, a row for each run of one: the names that its result entry
-- gives, and with their messages once the run's list of tests is here.
CREATE TABLE IF NOT EXISTS failure (
    failure INTEGER PRIMARY KEY,
    arrival INTEGER NOT NULL REFERENCES entry,
    job BLOB NOT NULL,
    cell BLOB NOT NULL,
    test TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS failure_arrival ON failure (arrival);
CREATE INDEX IF NOT EXISTS failure_message ON failure (arrival) WHERE message != '';

-- Full-text search: SELECT * FROM failures WHERE failure IN
-- (SELECT rowid FROM failure_text WHERE failure_text MATCH 'timeout'). Datasette and sqlite-utils
-- know it by the words content="failure", just so.
CREATE VIRTUAL TABLE IF NOT EXISTS failure_text USING fts5 (
    test, message, content="failure", content_rowid="failure"
);
CREATE TRIGGER IF NOT EXISTS failure_said AFTER INSERT ON failure BEGIN
    INSERT INTO failure_text (rowid, test, message) VALUES (new.failure, new.test, new.message);
END;
CREATE TRIGGER IF NOT EXISTS failure_unsaid AFTER DELETE ON failure BEGIN
    INSERT INTO failure_text (failure_text, rowid, test, message)
    VALUES ('delete', old.failure, old.test, old.message);
END;

-- The blobs that are here and what they are for; "kept" is when each came (ms).
CREATE TABLE IF NOT EXISTS blob (
    hash BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    role TEXT NOT NULL,
    job BLOB NOT NULL,
    failing INTEGER NOT NULL,
    kept INTEGER NOT NULL
) WITHOUT ROWID;

CREATE VIEW IF NOT EXISTS projects AS
SELECT lower(hex(project)) AS project, name, url,
       (SELECT count(*) FROM job WHERE job.project = project.project) AS jobs,
       datetime(updated / 1000, 'unixepoch') AS updated
FROM project;

CREATE VIEW IF NOT EXISTS jobs AS
SELECT lower(hex(job.job)) AS job, project.name AS project, job.title, job."commit",
       author.peer_id AS announced_by,
       datetime(job.announced / 1000, 'unixepoch') AS announced,
       datetime(job.expires / 1000, 'unixepoch') AS expires,
       job.redundancy,
       EXISTS (SELECT 1 FROM withdrawal AS w
               WHERE w.project = job.project AND w.job = job.job) AS withdrawn
FROM job JOIN author USING (author) LEFT JOIN project USING (project);

CREATE VIEW IF NOT EXISTS results AS
SELECT project.name AS project, job.title AS job, cell.python, cell.services, cell.factors,
       author.peer_id AS volunteer, result.state, result.reason,
       result.passed, result.failed, result.skipped, result.total,
       environment.text AS environment, round(result.seconds, 2) AS seconds,
       lower(hex(result.digest)) AS digest,
       feed.forked_at IS NOT NULL AND entry.seq >= feed.forked_at AS disputed,
       CASE entry.auth WHEN 1 THEN 'own' WHEN 0 THEN 'chain' ELSE 'junk' END AS auth
FROM result JOIN author ON author.author = result.author
JOIN environment ON environment.environment = result.environment
JOIN entry USING (arrival) JOIN feed USING (feed)
LEFT JOIN cell ON cell.job = result.job AND cell.cell = result.cell
LEFT JOIN job ON job.job = result.job
LEFT JOIN project ON project.project = job.project;

CREATE VIEW IF NOT EXISTS feeds AS
SELECT feed.feed, author.peer_id AS author, project.name AS project, feed.height,
       lower(hex(feed.head)) AS head,
       datetime(feed.head_time / 1000, 'unixepoch') AS last_entry, feed.forked_at
FROM feed JOIN author USING (author) LEFT JOIN project USING (project);

CREATE VIEW IF NOT EXISTS entries AS
SELECT entry.arrival, lower(hex(entry.id)) AS id,
       CASE entry.kind WHEN 1 THEN 'project' WHEN 2 THEN 'announce' WHEN 3 THEN 'withdraw'
            WHEN 4 THEN 'commit' WHEN 5 THEN 'result' WHEN 6 THEN 'vouch' WHEN 7 THEN 'revoke'
            WHEN 8 THEN 'fork' WHEN 9 THEN 'checkpoint' WHEN 10 THEN 'rotate'
            WHEN 11 THEN 'approve' ELSE 'kind ' || entry.kind END AS kind,
       author.peer_id AS author, project.name AS project, entry.seq,
       datetime(entry.time / 1000, 'unixepoch') AS time, length(entry.frame) AS bytes,
       CASE entry.auth WHEN 1 THEN 'own' WHEN 0 THEN 'chain' ELSE 'junk' END AS auth
FROM entry JOIN feed USING (feed) JOIN author USING (author) LEFT JOIN project USING (project);

CREATE VIEW IF NOT EXISTS volunteers AS
SELECT author.peer_id AS volunteer, results, completed, broken, tests
FROM volunteer JOIN author USING (author);

CREATE VIEW IF NOT EXISTS failures AS
SELECT failure.failure, project.name AS project, job.title AS job, job."commit", cell.python,
       cell.services, cell.factors, author.peer_id AS volunteer, failure.test, failure.message,
       datetime(entry.time / 1000, 'unixepoch') AS time
FROM failure JOIN entry USING (arrival) JOIN feed USING (feed)
JOIN author ON author.author = feed.author
LEFT JOIN project ON project.project = feed.project
LEFT JOIN job ON job.job = failure.job
LEFT JOIN cell ON cell.job = failure.job AND cell.cell = failure.cell;

CREATE VIEW IF NOT EXISTS forks AS
SELECT project.name AS project, author.peer_id AS author, lower(hex(evidence.nonce)) AS feed,
       evidence.seq, (SELECT count(*) FROM fork_told AS told WHERE told.project = evidence.project
                      AND told.author = evidence.author AND told.nonce = evidence.nonce) AS entries
FROM fork_evidence AS evidence LEFT JOIN author ON author.key = evidence.author
LEFT JOIN project ON project.project = evidence.project;

-- See entry_prefix: 65,536 entries in a stretch, one of a prefix in it. The first number is
-- what SQLite takes any table for that it knows nothing of, so that no other plan is moved.
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('entry', 'entry_prefix', '1048576 65536 1');
ANALYZE sqlite_schema;
