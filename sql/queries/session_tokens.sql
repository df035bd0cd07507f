-- session_tokens: the hashes of the tokens that open a session, one per browser.

-- name: replace_token :one
-- params: old_hash, new_hash, now_us
-- A token of a live session gives way to another one. No row: the old one opens nothing.
UPDATE session_tokens
SET token_hash = :new_hash, created_at_us = :now_us
WHERE token_hash = :old_hash
  AND EXISTS (SELECT 1
              FROM sessions
              WHERE sessions.id = session_tokens.session_id
                AND sessions.ended_at_us IS NULL
                AND sessions.expires_at_us > :now_us)
RETURNING session_id;

-- name: move_tokens :run
-- params: from_id, into_id
-- The browsers of one session are another's from now on.
UPDATE session_tokens
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: delete_tokens_of_session :run
-- params: session_id
-- No token opens this session any more.
DELETE FROM session_tokens
WHERE session_id = :session_id;

-- name: delete_dead_tokens :run
-- params: none
-- Tokens of sessions that have ended, or that are not there, go.
DELETE FROM session_tokens
WHERE NOT EXISTS (SELECT 1
                  FROM sessions
                  WHERE sessions.id = session_tokens.session_id
                    AND sessions.ended_at_us IS NULL);
