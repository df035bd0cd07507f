-- session_tokens: lists. Differs from postgresql: json_each unpacks them.

-- name: insert_tokens :run
-- params: rows
-- Add tokens, given as one JSON array of row objects; what is already there stays as it is.
-- The WHERE keeps SQLite from reading ON CONFLICT as part of a join.
INSERT INTO session_tokens (token_hash, session_id, created_at_us)
SELECT value ->> 'token_hash', value ->> 'session_id', value ->> 'created_at_us'
FROM json_each(:rows)
WHERE TRUE
ON CONFLICT (token_hash) DO NOTHING;

-- name: list_sessions_by_tokens :many
-- params: token_hashes, now_us, replaced_until_us
-- The live sessions that tokens of a JSON array of hashes open, as find_session_by_token has it for one.
SELECT session_tokens.token_hash, session_tokens.session_id
FROM session_tokens
JOIN sessions ON sessions.id = session_tokens.session_id
WHERE session_tokens.token_hash IN (SELECT value FROM json_each(:token_hashes))
  AND sessions.ended_at_us IS NULL
  AND sessions.expires_at_us > :now_us
  AND NOT EXISTS (SELECT 1
                  FROM session_tokens AS newer
                  WHERE newer.session_id = session_tokens.session_id
                    AND newer.replaces_hash = session_tokens.token_hash
                    AND newer.created_at_us <= :replaced_until_us);
