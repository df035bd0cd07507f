-- sessions: batches, and what needs a lock. Differs from sqlite as each query says.

-- name: insert_sessions :run
-- params: rows
-- Add new sessions, given as one JSON array of row objects; what is already there stays as it is.
-- Differs from sqlite: jsonb_to_recordset unpacks the array.
INSERT INTO sessions (id, created_at_us, last_seen_us, expires_at_us)
SELECT r.id, r.created_at_us, r.last_seen_us, r.expires_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
    id TEXT, created_at_us BIGINT, last_seen_us BIGINT, expires_at_us BIGINT
)
ON CONFLICT (id) DO NOTHING;

-- name: lock_live_sessions :many
-- params: first_id, second_id, now_us
-- Those of two sessions that are live; they stay as they are until the transaction ends.
-- Differs from sqlite: other transactions run beside this one, so the rows are locked, in the order
-- of their ids, that two sessions which join each other at once do not both end.
SELECT id
FROM sessions
WHERE id IN (:first_id, :second_id)
  AND ended_at_us IS NULL
  AND expires_at_us > :now_us
ORDER BY id
FOR UPDATE;

-- name: lock_session :many
-- params: session_id
-- A session neither ends nor joins another, and its tokens stay as they are, until the transaction ends.
-- Differs from sqlite: other transactions run beside this one; those that record an upload need not wait.
SELECT id
FROM sessions
WHERE id = :session_id
FOR NO KEY UPDATE;

-- name: touch_sessions :run
-- params: rows
-- Live sessions were seen, given as one JSON array of row objects, each id once; of those that joined another one, that
-- was. Times never go back.
-- Differs from sqlite: jsonb_to_recordset unpacks the array; greatest is called max there; one that somebody holds
-- locked is passed over, so that it keeps no other one waiting: it is seen again.
WITH seen AS MATERIALIZED (
    SELECT coalesce(went.merged_into_id, r.id) AS id,
           max(r.last_seen_us) AS last_seen_us,
           max(r.expires_at_us) AS expires_at_us
    FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
        id TEXT COLLATE "C", last_seen_us BIGINT, expires_at_us BIGINT
    )
    LEFT JOIN sessions AS went ON went.id = r.id
    GROUP BY coalesce(went.merged_into_id, r.id)
), free AS MATERIALIZED (
    SELECT id
    FROM sessions
    WHERE ended_at_us IS NULL
      AND id IN (SELECT seen.id FROM seen)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE sessions
SET last_seen_us = greatest(sessions.last_seen_us, seen.last_seen_us),
    expires_at_us = greatest(sessions.expires_at_us, seen.expires_at_us)
FROM seen
WHERE sessions.id = seen.id
  AND sessions.id IN (SELECT free.id FROM free);

-- name: expire_sessions :many
-- params: now_us, page_size
-- Some of the live sessions whose time is over end. The ids of those that did. Differs from sqlite: one that somebody
-- is changing may be in use after all; the next sweep looks again.
WITH over AS MATERIALIZED (
    SELECT id
    FROM sessions
    WHERE ended_at_us IS NULL
      AND expires_at_us <= :now_us
    ORDER BY expires_at_us
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE sessions
SET ended_at_us = :now_us
FROM over
WHERE sessions.id = over.id
RETURNING sessions.id;
