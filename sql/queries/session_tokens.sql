-- session_tokens: the hashes of the tokens that open a session, one per browser; two while one replaces the other.

-- name: insert_token :run
-- params: token_hash, session_id, created_at_us, replaces_hash?
-- Add a token of a session, which may replace another.
INSERT INTO session_tokens (token_hash, session_id, created_at_us, replaces_hash)
VALUES (:token_hash, :session_id, :created_at_us, CAST(:replaces_hash AS TEXT));

-- name: count_devices :one
-- params: session_id
-- The number of browsers that share a session; a token and its replacements count once.
SELECT count(DISTINCT coalesce(replaces_hash, token_hash)) AS devices
FROM session_tokens
WHERE session_id = :session_id;

-- name: use_token :run
-- params: token_hash
-- Note that a token has been used, and so replaces no other any more.
UPDATE session_tokens
SET replaces_hash = NULL
WHERE token_hash = :token_hash;

-- name: move_tokens :run
-- params: from_id, into_id
-- Let the tokens of one session open another.
UPDATE session_tokens
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: delete_replaced_tokens :run
-- params: session_id, replaced_hash
-- Delete a token that another one has replaced, and its other replacements, which were never used.
DELETE FROM session_tokens
WHERE session_id = :session_id
  AND (token_hash = :replaced_hash OR replaces_hash = :replaced_hash);

-- name: delete_tokens_of_session :run
-- params: session_id
-- Delete all tokens of a session.
DELETE FROM session_tokens
WHERE session_id = :session_id;

-- name: find_token_page :one
-- params: after_id, page_size
-- The end of a page of so many tokens, in the order of their sessions, behind that of after_id. No row: there are
-- fewer.
SELECT max(session_id) AS until_id
FROM (SELECT session_id
      FROM session_tokens
      WHERE session_id > :after_id
      ORDER BY session_id
      LIMIT :page_size) AS some_tokens
HAVING count(*) = :page_size;

-- name: delete_dead_tokens :run
-- params: after_id, until_id
-- Delete the tokens of sessions that have ended, or do not exist, among those behind after_id, up to until_id.
DELETE FROM session_tokens
WHERE session_id > :after_id
  AND session_id <= :until_id
  AND (SELECT sessions.id
       FROM sessions
       WHERE sessions.id = session_tokens.session_id
         AND sessions.ended_at_us IS NULL) IS NULL;
