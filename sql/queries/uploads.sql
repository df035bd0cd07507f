-- uploads: one row per file on its way in or already in. Inserting is in the dialects' folders.

-- name: list_uploads :many
-- params: session_id, before_us, before_id, from_us, min_size, max_size, statuses?, protocol?, sha256?, page_size
-- One page of a session's uploads, newest first, from just before (before_us, before_id) back to from_us.
-- statuses is a JSON array: a status is asked for when it stands there in quotes. Inside coalesce PostgreSQL
-- does not guess how few rows the filters leave; it would guess so few that it sorts the session for each page.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) < (:before_us, :before_id)
  AND created_at_us >= :from_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
      AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT)),
      FALSE)
ORDER BY created_at_us DESC, id DESC
LIMIT :page_size;

-- name: list_uploads_oldest :many
-- params: session_id, after_us, after_id, until_us, min_size, max_size, statuses?, protocol?, sha256?, page_size
-- One page of a session's uploads, oldest first, from just after (after_us, after_id) up to and with until_us.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) > (:after_us, :after_id)
  AND created_at_us <= :until_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
      AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT)),
      FALSE)
ORDER BY created_at_us, id
LIMIT :page_size;

-- name: list_stored :many
-- params: after_id, page_size
-- What storage must hold, over all sessions, by id: one page from just after after_id.
SELECT id, size_bytes, sha256
FROM uploads
WHERE status = 'completed'
  AND id > :after_id
ORDER BY id
LIMIT :page_size;

-- name: list_damaged :many
-- params: after_id, page_size
-- What storage should hold and was found not to, over all sessions, by id: one page from just after after_id.
-- An upload that never was complete can be lost too; it has no time of completion.
SELECT id, size_bytes, sha256
FROM uploads
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL
  AND id > :after_id
ORDER BY id
LIMIT :page_size;

-- name: count_uploads :one
-- params: session_id, from_us, until_us, min_size, max_size, statuses?, protocol?, sha256?, pattern?
-- How many of a session's uploads list_uploads finds over all pages.
SELECT count(*) AS uploads
FROM uploads
WHERE session_id = :session_id
  AND created_at_us BETWEEN :from_us AND :until_us
  AND size_bytes BETWEEN :min_size AND :max_size
  AND (CAST(:statuses AS TEXT) IS NULL
       OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
  AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
  AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT))
  AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\');

-- name: count_stored :one
-- params: none
-- How many uploads storage must hold, over all sessions.
SELECT count(*) AS uploads
FROM uploads
WHERE status = 'completed';

-- name: count_damaged :one
-- params: none
-- How many uploads storage should hold and was found not to, over all sessions.
SELECT count(*) AS uploads
FROM uploads
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL;

-- name: find_upload_span :one
-- params: session_id
-- When a session's first upload and its last one were created.
SELECT (SELECT created_at_us
        FROM uploads
        WHERE session_id = :session_id
        ORDER BY created_at_us, id
        LIMIT 1) AS first_us,
       (SELECT created_at_us
        FROM uploads
        WHERE session_id = :session_id
        ORDER BY created_at_us DESC, id DESC
        LIMIT 1) AS last_us;

-- name: advance_upload :run
-- params: upload_id, size_bytes, status
-- More of an upload that comes in several requests is there, or it is being put together.
UPDATE uploads
SET size_bytes = :size_bytes, status = :status
WHERE id = :upload_id
  AND status IN ('uploading', 'processing');

-- name: end_upload :run
-- params: upload_id, status, error_code?, error_detail?
-- An upload that came in several requests will never be complete.
UPDATE uploads
SET status = :status, error_code = CAST(:error_code AS TEXT), error_detail = CAST(:error_detail AS TEXT)
WHERE id = :upload_id
  AND status IN ('uploading', 'processing');

-- name: delete_upload :one
-- params: session_id, upload_id, now_us, deleted_since_us
-- The bytes of an upload that was complete, damaged or not, are gone, or about to go; its record stays. So it was
-- before, if it was deleted since deleted_since_us. No row: nothing to delete. An upload that has yet to follow its
-- session into another one is that one's already.
UPDATE uploads
SET status = 'deleted', error_code = NULL, error_detail = NULL,
    deleted_at_us = CASE WHEN status = 'deleted' THEN deleted_at_us ELSE CAST(:now_us AS BIGINT) END
WHERE id = :upload_id
  AND (session_id = :session_id
       OR session_id IN (SELECT merged.id FROM sessions AS merged WHERE merged.merged_into_id = :session_id))
  AND (status = 'completed'
       OR (error_code IN ('lost', 'damaged') AND completed_at_us IS NOT NULL)
       OR (status = 'deleted' AND deleted_at_us > :deleted_since_us))
RETURNING id;

-- name: try_recording :run
-- params: none
-- Nothing is changed; whatever would keep a row from being recorded now refuses this as well, or makes it wait.
UPDATE uploads
SET status = status
WHERE FALSE;

-- name: delete_failed_uploads :many
-- params: created_before_us, page_size
-- Records of uploads that failed or expired and never were complete go, so many at most of those that were begun before
-- then. What came in several requests stays as long as its address is remembered. The ids of those deleted.
DELETE FROM uploads
WHERE id IN (SELECT old.id
             FROM uploads AS old
             WHERE old.completed_at_us IS NULL
               AND (old.status = 'failed' OR old.status = 'expired')
               AND old.created_at_us < :created_before_us
               AND NOT EXISTS (SELECT 1 FROM resumables WHERE resumables.upload_id = old.id)
             ORDER BY old.created_at_us
             LIMIT :page_size)
RETURNING id;
