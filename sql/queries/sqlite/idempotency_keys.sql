-- idempotency_keys: acquiring a key, and lists, which travel as one JSON parameter.

-- name: take_idempotency_key :one
-- params: session_id, key_hash, claim_id, protocol, filename?, content_type, length_bytes?, boundary_bytes, now_us, expires_at_us
-- Acquire a key that is free, or whose claim or answer has expired. No row: another claim has it. A session that has
-- joined another one has its keys there. Differs from postgresql: one writer at a time needs no lock.
INSERT INTO idempotency_keys (session_id, key_hash, claim_id, protocol, filename, content_type, length_bytes,
                              boundary_bytes, answer, expires_at_us)
VALUES (coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = :session_id), :session_id),
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
-- Renew the unanswered claims of a JSON array of ids. Differs from postgresql: json_each unpacks it, and with one
-- writer at a time nothing is skipped.
UPDATE idempotency_keys
SET expires_at_us = :expires_at_us
WHERE answer IS NULL
  AND claim_id IN (SELECT value FROM json_each(:claim_ids));

-- name: answer_idempotency_keys :many
-- params: rows, expires_at_us
-- Record what landed under these claims, a JSON array of row objects, until then. The claims that still hold their
-- keys. Differs from postgresql: json_each unpacks it.
UPDATE idempotency_keys
SET answer = r.value ->> 'answer', expires_at_us = :expires_at_us
FROM json_each(:rows) AS r
WHERE idempotency_keys.claim_id = r.value ->> 'claim_id'
RETURNING idempotency_keys.claim_id;
