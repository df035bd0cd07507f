-- session_tokens: lists. Differs from sqlite: jsonb_to_recordset unpacks them.

-- name: insert_tokens :run
-- params: rows
-- Add tokens, given as one JSON array of row objects; what is already there stays as it is.
INSERT INTO session_tokens (token_hash, session_id, created_at_us)
SELECT r.token_hash, r.session_id, r.created_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (token_hash TEXT, session_id TEXT, created_at_us BIGINT)
ON CONFLICT (token_hash) DO NOTHING;

-- name: list_sessions_by_tokens :many
-- params: token_hashes, now_us, replaced_until_us
-- The live sessions that tokens of a JSON array of hashes open, as find_session_by_token has it for one.
SELECT session_tokens.token_hash, session_tokens.session_id
FROM session_tokens
JOIN sessions ON sessions.id = session_tokens.session_id
WHERE session_tokens.token_hash IN (SELECT jsonb_array_elements_text(CAST(:token_hashes AS JSONB)))
  AND sessions.ended_at_us IS NULL
  AND sessions.expires_at_us > :now_us
  AND NOT EXISTS (SELECT 1
                  FROM session_tokens AS newer
                  WHERE newer.session_id = session_tokens.session_id
                    AND newer.replaces_hash = session_tokens.token_hash
                    AND newer.created_at_us <= :replaced_until_us);
