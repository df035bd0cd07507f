-- sessions: who may see which uploads. One row per session; it stays when the session has ended.

-- name: find_session_by_token :one
-- params: token_hash, now_us, replaced_until_us
-- The live session that a token opens, and the token that it replaces, if it has not been used. No row: it opens none,
-- among others because one in its place was given out by replaced_until_us.
SELECT sessions.id, sessions.created_at_us, sessions.last_seen_us, sessions.expires_at_us,
       session_tokens.replaces_hash
FROM session_tokens
JOIN sessions ON sessions.id = session_tokens.session_id
WHERE session_tokens.token_hash = :token_hash
  AND sessions.ended_at_us IS NULL
  AND sessions.expires_at_us > :now_us
  AND NOT EXISTS (SELECT 1
                  FROM session_tokens AS newer
                  WHERE newer.session_id = session_tokens.session_id
                    AND newer.replaces_hash = session_tokens.token_hash
                    AND newer.created_at_us <= :replaced_until_us);

-- name: find_session :one
-- params: session_id
-- A session, live or not, as an operator sees it.
SELECT id, created_at_us, last_seen_us, expires_at_us, ended_at_us, merged_into_id
FROM sessions
WHERE id = :session_id;

-- name: list_sessions :many
-- params: limit
-- The sessions seen last, live or not, as an operator sees them.
SELECT id, created_at_us, last_seen_us, expires_at_us, ended_at_us, merged_into_id
FROM sessions
ORDER BY last_seen_us DESC, id DESC
LIMIT :limit;

-- name: end_session :run
-- params: session_id, now_us
-- A live session ends.
UPDATE sessions
SET ended_at_us = :now_us
WHERE id = :session_id
  AND ended_at_us IS NULL;

-- name: end_merged_session :run
-- params: session_id, into_id, now_us
-- A live session ends because its uploads are another's from now on.
UPDATE sessions
SET ended_at_us = :now_us, merged_into_id = :into_id
WHERE id = :session_id;

-- name: repoint_merged_sessions :run
-- params: from_id, into_id
-- Sessions that joined one which now joins another follow it: nobody has to look twice.
UPDATE sessions
SET merged_into_id = :into_id
WHERE merged_into_id = :from_id;

-- name: expire_sessions :many
-- params: now_us
-- Live sessions whose time is over end. The ids of those that did.
UPDATE sessions
SET ended_at_us = :now_us
WHERE ended_at_us IS NULL
  AND expires_at_us <= :now_us
RETURNING id;

-- name: delete_empty_sessions :many
-- params: ended_before_us
-- Sessions that ended long enough ago and have no upload. The ids of those deleted. One that joined another stays as
-- long as that one's row: it says where an upload belongs that is still under way, however long that takes.
DELETE FROM sessions
WHERE ended_at_us < :ended_before_us
  AND NOT EXISTS (SELECT 1 FROM uploads WHERE uploads.session_id = sessions.id)
  AND NOT EXISTS (SELECT 1 FROM sessions AS joined WHERE joined.id = sessions.merged_into_id)
RETURNING id;
