-- merges: the moves. Differs from sqlite: other transactions run beside this one. Rows that others are changing are
-- skipped, and found the next time: a move holds locks on totals, and waits for nothing while it does.

-- name: lock_merge :one
-- params: session_id
-- The session to which the records of a merged one move, locked as such until the transaction ends. No row: it joined
-- none.
SELECT merged_into_id
FROM sessions
WHERE id = :session_id
  AND merged_into_id IS NOT NULL
FOR KEY SHARE;

-- name: repoint_merged_sessions :many
-- params: from_id, into_id, page_size
-- Redirect sessions that joined one which now joins another, a page at most, so that one look-up finds their session.
WITH moving AS MATERIALIZED (
    SELECT id
    FROM sessions
    WHERE merged_into_id = :from_id
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE sessions
SET merged_into_id = :into_id
FROM moving
WHERE sessions.id = moving.id
RETURNING sessions.id;

-- name: move_resumables :many
-- params: from_id, into_id, page_size
-- Move resumable uploads of one session to another, a page at most.
WITH moving AS MATERIALIZED (
    SELECT key_hash
    FROM resumables
    WHERE session_id = :from_id
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE resumables
SET session_id = :into_id
FROM moving
WHERE resumables.key_hash = moving.key_hash
RETURNING resumables.key_hash;

-- name: move_uploads :many
-- params: from_id, into_id, before_us, before_id, page_size
-- Move uploads of one session to another, a page at most: the newest first, from just before (before_us, before_id).
WITH moving AS MATERIALIZED (
    SELECT id
    FROM uploads
    WHERE session_id = :from_id
      AND (created_at_us, id) < (:before_us, :before_id)
    ORDER BY created_at_us DESC, id DESC
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE uploads
SET session_id = :into_id
FROM moving
WHERE uploads.id = moving.id
RETURNING uploads.id, uploads.created_at_us;

-- name: move_allowances :many
-- params: from_id, into_id, page_size
-- Move grants of one session to another, a page at most.
WITH moving AS MATERIALIZED (
    SELECT id
    FROM allowances
    WHERE session_id = :from_id
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE allowances
SET session_id = :into_id
FROM moving
WHERE allowances.id = moving.id
RETURNING allowances.id;

-- name: move_idempotency_keys :many
-- params: from_id, into_id, now_us, page_size
-- Move keys of one session that have not expired to another, a page at most; where both have the same key, each keeps
-- its own.
WITH moving AS MATERIALIZED (
    SELECT claim_id
    FROM idempotency_keys
    WHERE session_id = :from_id
      AND expires_at_us > :now_us
      AND NOT EXISTS (SELECT 1
                      FROM idempotency_keys AS theirs
                      WHERE theirs.session_id = :into_id
                        AND theirs.key_hash = idempotency_keys.key_hash)
    LIMIT :page_size
    FOR UPDATE SKIP LOCKED
)
UPDATE idempotency_keys
SET session_id = :into_id
FROM moving
WHERE idempotency_keys.claim_id = moving.claim_id
RETURNING idempotency_keys.claim_id;
