-- sessions: the owners of uploads. One row per session; it stays when the session has ended.

-- name: find_session_by_token :one
-- params: token_hash, now_us, replaced_until_us
-- The live session that a token opens, and the token that it replaces, if it has not been used. No row: it opens none,
-- for example because it was replaced before replaced_until_us.
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
-- End a live session.
UPDATE sessions
SET ended_at_us = :now_us
WHERE id = :session_id
  AND ended_at_us IS NULL;

-- name: end_merged_session :run
-- params: session_id, into_id, now_us
-- End a live session, because it joins another one.
UPDATE sessions
SET ended_at_us = :now_us, merged_into_id = :into_id
WHERE id = :session_id;

-- name: find_session_page :one
-- params: after_id, page_size
-- The end of a page of so many sessions, live or not, in the order of their ids. No row: there are fewer.
SELECT max(id) AS until_id
FROM (SELECT id
      FROM sessions
      WHERE id > :after_id
      ORDER BY id
      LIMIT :page_size) AS some_sessions
HAVING count(*) = :page_size;

-- name: end_unused_sessions :many
-- params: after_id, until_id, seen_before_us, now_us
-- End live sessions behind after_id, up to until_id, that were last seen before then, and have never had an upload
-- except failed ones, nor have one under way. The ids of those that ended.
UPDATE sessions
SET ended_at_us = :now_us
WHERE id > :after_id
  AND id <= :until_id
  AND ended_at_us IS NULL
  AND last_seen_us < :seen_before_us
  AND (SELECT uploads.id
       FROM uploads
       WHERE uploads.session_id = sessions.id
         AND (uploads.status <> 'failed' OR uploads.completed_at_us IS NOT NULL)
       LIMIT 1) IS NULL
  AND (SELECT resumables.key_hash
       FROM resumables
       WHERE resumables.session_id = sessions.id
         AND resumables.ended_as IS NULL
       LIMIT 1) IS NULL
  AND (SELECT allowances.id FROM allowances WHERE allowances.session_id = sessions.id LIMIT 1) IS NULL
  AND (SELECT joined.id FROM sessions AS joined WHERE joined.merged_into_id = sessions.id LIMIT 1) IS NULL
RETURNING id;

-- name: delete_empty_sessions :many
-- params: after_id, until_id, ended_before_us
-- Delete sessions behind after_id, up to until_id, that ended long enough ago and have no upload. The ids of those
-- deleted. One that joined another stays as long as that one's row: it leads to the session of an upload that is still
-- under way, however long that takes.
DELETE FROM sessions
WHERE id > :after_id
  AND id <= :until_id
  AND ended_at_us < :ended_before_us
  AND (SELECT uploads.id FROM uploads WHERE uploads.session_id = sessions.id LIMIT 1) IS NULL
  AND (SELECT joined.id FROM sessions AS joined WHERE joined.id = sessions.merged_into_id) IS NULL
RETURNING id;
