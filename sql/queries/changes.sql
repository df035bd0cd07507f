-- changes: what happened to uploads, in the order in which it was committed. Triggers write them.

-- name: list_changes :many
-- params: from_id, page_size
-- Changes over all sessions: one page, beginning with from_id.
SELECT id, upload_id, session_id, kind, at_us
FROM changes
WHERE id >= :from_id
ORDER BY id
LIMIT :page_size;

-- name: list_session_changes :many
-- params: session_id, after_id, until_id, page_size
-- The changes of a session among those between two ids: one page. No index is kept for this, which would cost every
-- upload more than a client that comes back costs.
SELECT id, upload_id, session_id, kind, at_us
FROM changes
WHERE id > :after_id
  AND id <= :until_id
  AND session_id = :session_id
ORDER BY id
LIMIT :page_size;

-- name: find_change :many
-- params: id
-- One change.
SELECT id, upload_id, session_id, kind, at_us
FROM changes
WHERE id = :id;

-- name: find_newest_change :many
-- params: none
-- The newest change.
SELECT id, upload_id, session_id, kind, at_us
FROM changes
ORDER BY id DESC
LIMIT 1;

-- name: delete_old_changes :many
-- params: before_us, page_size
-- Delete the oldest changes if they were made before then, a page at most; the newest stays, so that it is known how
-- far the ids are. The ids of those deleted.
DELETE FROM changes
WHERE id IN (SELECT old.id
             FROM (SELECT id, at_us
                   FROM changes
                   ORDER BY id
                   LIMIT :page_size) AS old
             WHERE old.at_us < :before_us)
  AND id < (SELECT max(id) FROM changes)
RETURNING id;
