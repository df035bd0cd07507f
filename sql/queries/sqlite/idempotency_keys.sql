-- idempotency_keys: what takes a key, and batches, which travel as one JSON parameter.

-- name: take_idempotency_key :one
-- params: session_id, key_hash, claim_id, protocol, filename?, content_type, length_bytes?, boundary_bytes, now_us, expires_at_us
-- A request takes a key that is free, or whose row means nothing any more. No row: somebody has it. A session that has
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
-- Those of a JSON array of claims that are not answered are held until then. Differs from postgresql: json_each
-- unpacks it, and one writer at a time passes over nothing.
UPDATE idempotency_keys
SET expires_at_us = :expires_at_us
WHERE answer IS NULL
  AND claim_id IN (SELECT value FROM json_each(:claim_ids));

-- name: answer_idempotency_keys :many
-- params: rows, expires_at_us
-- What landed under these claims, a JSON array of row objects, is remembered until then. The claims that hold their
-- keys still. Differs from postgresql: json_each unpacks it.
UPDATE idempotency_keys
SET answer = r.value ->> 'answer', expires_at_us = :expires_at_us
FROM json_each(:rows) AS r
WHERE idempotency_keys.claim_id = r.value ->> 'claim_id'
RETURNING idempotency_keys.claim_id;
