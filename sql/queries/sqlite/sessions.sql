-- sessions: lists, and queries with locks. Differs from postgresql as each query says.

-- name: insert_sessions :run
-- params: rows
-- Add new sessions, given as one JSON array of row objects; what is already there stays as it is.
-- Differs from postgresql: json_each unpacks the array; the WHERE keeps SQLite from reading
-- ON CONFLICT as part of a join.
INSERT INTO sessions (id, created_at_us, last_seen_us, expires_at_us)
SELECT value ->> 'id', value ->> 'created_at_us', value ->> 'last_seen_us', value ->> 'expires_at_us'
FROM json_each(:rows)
WHERE TRUE
ON CONFLICT (id) DO NOTHING;

-- name: lock_live_sessions :many
-- params: first_id, second_id, now_us
-- Lock those of two sessions that are live until the transaction ends.
-- Differs from postgresql: the transaction has the whole database for itself already.
SELECT id
FROM sessions
WHERE id IN (:first_id, :second_id)
  AND ended_at_us IS NULL
  AND expires_at_us > :now_us
ORDER BY id;

-- name: lock_session :many
-- params: session_id
-- Lock a session until the transaction ends: it neither ends nor joins another, and its tokens stay as they are.
-- Differs from postgresql: the transaction has the whole database for itself already.
SELECT id
FROM sessions
WHERE id = :session_id;

-- name: touch_sessions :run
-- params: rows
-- Note that live sessions were seen, given as one JSON array of row objects, each id once; for one that joined another,
-- that one was. Times never go back.
-- Differs from postgresql: json_each unpacks the array; max of two values is called greatest there.
UPDATE sessions
SET last_seen_us = max(sessions.last_seen_us, seen.last_seen_us),
    expires_at_us = max(sessions.expires_at_us, seen.expires_at_us)
FROM (SELECT coalesce(went.merged_into_id, value ->> 'id') AS id,
             max(value ->> 'last_seen_us') AS last_seen_us,
             max(value ->> 'expires_at_us') AS expires_at_us
      FROM json_each(:rows)
      LEFT JOIN sessions AS went ON went.id = value ->> 'id'
      GROUP BY coalesce(went.merged_into_id, value ->> 'id')) AS seen
WHERE sessions.id = seen.id
  AND sessions.ended_at_us IS NULL;

-- name: expire_sessions :many
-- params: now_us, page_size
-- End expired live sessions, a page at most. The ids of those that ended. Differs from postgresql: nobody else changes
-- them meanwhile.
UPDATE sessions
SET ended_at_us = :now_us
WHERE id IN (SELECT over.id
             FROM sessions AS over
             WHERE over.ended_at_us IS NULL
               AND over.expires_at_us <= :now_us
             ORDER BY over.expires_at_us
             LIMIT :page_size)
RETURNING id;
