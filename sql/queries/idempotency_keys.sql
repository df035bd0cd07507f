-- idempotency_keys: one row for each key under which a session sent a request. Acquiring a key, and lists, are in the
-- dialects' folders.

-- name: find_idempotency_key :one
-- params: session_id, key_hash, now_us
-- The claim on a session's key, or its answer, unless expired. The keys of a session that has joined another one are
-- found there, also while they are moving.
SELECT claim_id, protocol, filename, content_type, length_bytes, boundary_bytes, answer
FROM idempotency_keys
WHERE session_id IN (SELECT coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = :session_id), :session_id)
                     UNION ALL
                     SELECT merged.id
                     FROM sessions AS merged
                     WHERE merged.merged_into_id = coalesce((SELECT merged_into_id
                                                             FROM sessions
                                                             WHERE sessions.id = :session_id),
                                                            :session_id)
                       AND EXISTS (SELECT 1 FROM merges WHERE merges.session_id = merged.id))
  AND key_hash = :key_hash
  AND expires_at_us > :now_us
ORDER BY CASE WHEN EXISTS (SELECT 1 FROM merges WHERE merges.session_id = idempotency_keys.session_id) THEN 1 ELSE 0 END
LIMIT 1;

-- name: free_idempotency_key :run
-- params: claim_id
-- Release the key of a claim whose request failed, as if it had never been used. An answer stays.
DELETE FROM idempotency_keys
WHERE claim_id = :claim_id
  AND answer IS NULL;

-- name: delete_old_idempotency_keys :many
-- params: until_us, page_size
-- Delete expired claims and answers, a page of the oldest.
DELETE FROM idempotency_keys
WHERE expires_at_us <= :until_us
  AND claim_id IN (SELECT old.claim_id
                   FROM idempotency_keys AS old
                   WHERE old.expires_at_us <= :until_us
                   ORDER BY old.expires_at_us
                   LIMIT :page_size)
RETURNING claim_id;
