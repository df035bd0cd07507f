-- session_tokens: the hashes of the tokens that open a session, one per browser; two while one replaces the other.

-- name: insert_token :run
-- params: token_hash, session_id, created_at_us, replaces_hash?
-- One more token opens the session, perhaps in another's place.
INSERT INTO session_tokens (token_hash, session_id, created_at_us, replaces_hash)
VALUES (:token_hash, :session_id, :created_at_us, CAST(:replaces_hash AS TEXT));

-- name: count_devices :one
-- params: session_id
-- How many browsers share a session: its tokens, and one that replaces another counts as that one.
SELECT count(DISTINCT coalesce(replaces_hash, token_hash)) AS devices
FROM session_tokens
WHERE session_id = :session_id;

-- name: use_token :run
-- params: token_hash
-- A token has been used: it is in nobody's place any more.
UPDATE session_tokens
SET replaces_hash = NULL
WHERE token_hash = :token_hash;

-- name: move_tokens :run
-- params: from_id, into_id
-- The browsers of one session are another's from now on.
UPDATE session_tokens
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: delete_replaced_tokens :run
-- params: session_id, replaced_hash
-- A token that another one has replaced goes, and those that were given out in its place and never used.
DELETE FROM session_tokens
WHERE session_id = :session_id
  AND (token_hash = :replaced_hash OR replaces_hash = :replaced_hash);

-- name: delete_tokens_of_session :run
-- params: session_id
-- No token opens this session any more.
DELETE FROM session_tokens
WHERE session_id = :session_id;

-- name: find_token_page :one
-- params: after_id, page_size
-- Where a page of so many tokens ends, in the order of their sessions, behind that of after_id. No row: it has fewer.
SELECT max(session_id) AS until_id
FROM (SELECT session_id
      FROM session_tokens
      WHERE session_id > :after_id
      ORDER BY session_id
      LIMIT :page_size) AS some_tokens
HAVING count(*) = :page_size;

-- name: delete_dead_tokens :run
-- params: after_id, until_id
-- Tokens of sessions that have ended, or that are not there, go: those of the sessions behind after_id, up to until_id.
DELETE FROM session_tokens
WHERE session_id > :after_id
  AND session_id <= :until_id
  AND (SELECT sessions.id
       FROM sessions
       WHERE sessions.id = session_tokens.session_id
         AND sessions.ended_at_us IS NULL) IS NULL;
