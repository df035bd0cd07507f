-- session_tokens: batches. Differs from postgresql: json_each unpacks them.

-- name: insert_tokens :run
-- params: rows
-- Add tokens, given as one JSON array of row objects; what is already there stays as it is.
-- The WHERE keeps SQLite from reading ON CONFLICT as part of a join.
INSERT INTO session_tokens (token_hash, session_id, created_at_us)
SELECT value ->> 'token_hash', value ->> 'session_id', value ->> 'created_at_us'
FROM json_each(:rows)
WHERE TRUE
ON CONFLICT (token_hash) DO NOTHING;
