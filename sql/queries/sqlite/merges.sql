-- merges: what moves. Differs from postgresql: the transaction has the whole database for itself already.

-- name: lock_merge :one
-- params: session_id
-- Where the records of a session go that joined another one; they go there until the transaction ends. No row: nowhere.
SELECT merged_into_id
FROM sessions
WHERE id = :session_id
  AND merged_into_id IS NOT NULL;

-- name: repoint_merged_sessions :many
-- params: from_id, into_id, page_size
-- Some of the sessions that joined one which now joins another follow it: nobody has to look twice.
UPDATE sessions
SET merged_into_id = :into_id
WHERE id IN (SELECT merged.id
             FROM sessions AS merged
             WHERE merged.merged_into_id = :from_id
             LIMIT :page_size)
RETURNING id;

-- name: move_resumables :many
-- params: from_id, into_id, page_size
-- Some of one session become another's.
UPDATE resumables
SET session_id = :into_id
WHERE key_hash IN (SELECT moving.key_hash
                   FROM resumables AS moving
                   WHERE moving.session_id = :from_id
                   LIMIT :page_size)
RETURNING key_hash;

-- name: move_uploads :many
-- params: from_id, into_id, before_us, before_id, page_size
-- Some of one session become another's: the newest first, from just before (before_us, before_id).
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
-- Some of one session become another's.
UPDATE allowances
SET session_id = :into_id
WHERE id IN (SELECT moving.id
             FROM allowances AS moving
             WHERE moving.session_id = :from_id
             LIMIT :page_size)
RETURNING id;

-- name: move_idempotency_keys :many
-- params: from_id, into_id, now_us, page_size
-- Some of the keys of one session that still mean something become another's; where both have the same, each keeps its
-- own.
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
