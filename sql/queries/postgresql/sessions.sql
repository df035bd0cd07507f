-- sessions: lists, and queries with locks. Differs from sqlite as each query says.

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
-- Lock those of two sessions that are live until the transaction ends.
-- Differs from sqlite: other transactions run beside this one, so the rows are locked, in the order of their ids, lest
-- two sessions that join each other at once both end.
SELECT id
FROM sessions
WHERE id IN (:first_id, :second_id)
  AND ended_at_us IS NULL
  AND expires_at_us > :now_us
ORDER BY id
FOR UPDATE;

-- name: lock_session :many
-- params: session_id
-- Lock a session until the transaction ends: it neither ends nor joins another, and its tokens stay as they are.
-- Differs from sqlite: other transactions run beside this one; those that record an upload need not wait.
SELECT id
FROM sessions
WHERE id = :session_id
FOR NO KEY UPDATE;

-- name: touch_sessions :run
-- params: rows
-- Note that live sessions were seen, given as one JSON array of row objects, each id once; for one that joined another,
-- that one was. Times never go back.
-- Differs from sqlite: jsonb_to_recordset unpacks the array; greatest is called max there; a locked row is skipped, so
-- that it delays no other: its session will be seen again.
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
-- End expired live sessions, a page at most. The ids of those that ended. Differs from sqlite: a row that others are
-- changing may be in use after all, and is left to the next sweep.
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
