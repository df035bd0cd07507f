-- idempotency_keys: acquiring a key, and lists, which travel as one JSON parameter.

-- name: take_idempotency_key :one
-- params: session_id, key_hash, claim_id, protocol, filename?, content_type, length_bytes?, boundary_bytes, now_us, expires_at_us
-- Acquire a key that is free, or whose claim or answer has expired. No row: another claim has it. A session that has
-- joined another one has its keys there. Differs from sqlite: FOR KEY SHARE, so that a session that is joining another
-- one just now is waited for, and waits for us, and no key is left behind.
INSERT INTO idempotency_keys (session_id, key_hash, claim_id, protocol, filename, content_type, length_bytes,
                              boundary_bytes, answer, expires_at_us)
VALUES (coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = :session_id FOR KEY SHARE), :session_id),
        :key_hash, :claim_id, :protocol, CAST(:filename AS TEXT), :content_type, CAST(:length_bytes AS BIGINT),
        :boundary_bytes, NULL, :expires_at_us)
ON CONFLICT (session_id, key_hash) DO UPDATE
SET claim_id = excluded.claim_id, protocol = excluded.protocol, filename = excluded.filename,
    content_type = excluded.content_type, length_bytes = excluded.length_bytes,
    boundary_bytes = excluded.boundary_bytes, answer = NULL, expires_at_us = excluded.expires_at_us
WHERE idempotency_keys.expires_at_us <= :now_us
RETURNING claim_id;

-- name: renew_idempotency_keys :run
-- params: claim_ids, expires_at_us
-- Renew the unanswered claims of a JSON array of ids. Differs from sqlite: jsonb functions unpack it, and rows that
-- others are changing are skipped: they are being answered, and locks that are taken out of order must not be waited
-- for.
UPDATE idempotency_keys
SET expires_at_us = :expires_at_us
WHERE claim_id IN (SELECT held.claim_id
                   FROM idempotency_keys AS held
                   WHERE held.answer IS NULL
                     AND held.claim_id IN (SELECT jsonb_array_elements_text(CAST(:claim_ids AS JSONB)))
                   FOR UPDATE SKIP LOCKED);

-- name: answer_idempotency_keys :many
-- params: rows, expires_at_us
-- Record what landed under these claims, a JSON array of row objects, until then. The claims that still hold their
-- keys. Differs from sqlite: jsonb functions unpack it.
UPDATE idempotency_keys
SET answer = r.answer, expires_at_us = :expires_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (claim_id TEXT COLLATE "C", answer TEXT)
WHERE idempotency_keys.claim_id = r.claim_id
RETURNING idempotency_keys.claim_id;
