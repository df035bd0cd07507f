-- merges: the moves. Differs from postgresql: the transaction has the whole database for itself already.

-- name: lock_merge :one
-- params: session_id
-- The session to which the records of a merged one move, locked as such until the transaction ends. No row: it joined
-- none.
SELECT merged_into_id
FROM sessions
WHERE id = :session_id
  AND merged_into_id IS NOT NULL;

-- name: repoint_merged_sessions :many
-- params: from_id, into_id, page_size
-- Redirect sessions that joined one which now joins another, a page at most, so that one look-up finds their session.
UPDATE sessions
SET merged_into_id = :into_id
WHERE id IN (SELECT merged.id
             FROM sessions AS merged
             WHERE merged.merged_into_id = :from_id
             LIMIT :page_size)
RETURNING id;

-- name: move_resumables :many
-- params: from_id, into_id, page_size
-- Move resumable uploads of one session to another, a page at most.
UPDATE resumables
SET session_id = :into_id
WHERE key_hash IN (SELECT moving.key_hash
                   FROM resumables AS moving
                   WHERE moving.session_id = :from_id
                   LIMIT :page_size)
RETURNING key_hash;

-- name: move_uploads :many
-- params: from_id, into_id, before_us, before_id, page_size
-- Move uploads of one session to another, a page at most: the newest first, from just before (before_us, before_id).
UPDATE uploads
SET session_id = :into_id
WHERE id IN (SELECT moving.id
             FROM uploads AS moving
             WHERE moving.session_id = :from_id
               AND (moving.created_at_us, moving.id) < (:before_us, :before_id)
             ORDER BY moving.created_at_us DESC, moving.id DESC
             LIMIT :page_size)
RETURNING id, created_at_us;

-- name: move_allowances :many
-- params: from_id, into_id, page_size
-- Move grants of one session to another, a page at most.
UPDATE allowances
SET session_id = :into_id
WHERE id IN (SELECT moving.id
             FROM allowances AS moving
             WHERE moving.session_id = :from_id
             LIMIT :page_size)
RETURNING id;

-- name: move_idempotency_keys :many
-- params: from_id, into_id, now_us, page_size
-- Move keys of one session that have not expired to another, a page at most; where both have the same key, each keeps
-- its own.
UPDATE idempotency_keys
SET session_id = :into_id
WHERE claim_id IN (SELECT moving.claim_id
                   FROM idempotency_keys AS moving
                   WHERE moving.session_id = :from_id
                     AND moving.expires_at_us > :now_us
                     AND NOT EXISTS (SELECT 1
                                     FROM idempotency_keys AS theirs
                                     WHERE theirs.session_id = :into_id
                                       AND theirs.key_hash = moving.key_hash)
                   LIMIT :page_size)
RETURNING claim_id;
