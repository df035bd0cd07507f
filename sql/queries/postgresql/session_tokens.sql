-- session_tokens: batches. Differs from sqlite: jsonb_to_recordset unpacks them.

-- name: insert_tokens :run
-- params: rows
-- Add tokens, given as one JSON array of row objects; what is already there stays as it is.
INSERT INTO session_tokens (token_hash, session_id, created_at_us)
SELECT r.token_hash, r.session_id, r.created_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (token_hash TEXT, session_id TEXT, created_at_us BIGINT)
ON CONFLICT (token_hash) DO NOTHING;
