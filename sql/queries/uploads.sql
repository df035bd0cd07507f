-- uploads: one row per file that was or is being received. Inserting is in the dialects' folders.

-- name: list_uploads :many
-- params: session_id, before_us, before_id, from_us, min_size, max_size, statuses?, protocol?, page_size
-- A page of a session's uploads, newest first, from just before (before_us, before_id) back to from_us. statuses is a
-- JSON array, searched for a status in quotes. Inside coalesce PostgreSQL does not guess how few rows the filters
-- leave; its guess would be so low that it sorts the session for each page.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) < (:before_us, :before_id)
  AND created_at_us >= :from_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us DESC, id DESC
LIMIT :page_size;

-- name: list_uploads_oldest :many
-- params: session_id, after_us, after_id, until_us, min_size, max_size, statuses?, protocol?, page_size
-- A page of a session's uploads, oldest first, from just after (after_us, after_id) up to and with until_us.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) > (:after_us, :after_id)
  AND created_at_us <= :until_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us, id
LIMIT :page_size;

-- name: list_uploads_of_digest :many
-- params: session_id, sha256, before_us, before_id, from_us, min_size, max_size, statuses?, protocol?, pattern?, page_size
-- A page of a session's uploads of a digest, as list_uploads. The index holds the digest's first digits, which find them;
-- the whole digest decides. A plus before a column keeps the database from using another index, for the order.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND substr(sha256, 1, 16) = substr(CAST(:sha256 AS TEXT), 1, 16)
  AND sha256 = CAST(:sha256 AS TEXT)
  AND (+created_at_us, id) < (:before_us, :before_id)
  AND +created_at_us >= :from_us
  AND size_bytes BETWEEN :min_size AND :max_size
  AND (CAST(:statuses AS TEXT) IS NULL
       OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
  AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
  AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\')
ORDER BY +created_at_us DESC, id DESC
LIMIT :page_size;

-- name: list_uploads_of_digest_oldest :many
-- params: session_id, sha256, after_us, after_id, until_us, min_size, max_size, statuses?, protocol?, pattern?, page_size
-- The same, oldest first, as list_uploads_oldest.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND substr(sha256, 1, 16) = substr(CAST(:sha256 AS TEXT), 1, 16)
  AND sha256 = CAST(:sha256 AS TEXT)
  AND (+created_at_us, id) > (:after_us, :after_id)
  AND +created_at_us <= :until_us
  AND size_bytes BETWEEN :min_size AND :max_size
  AND (CAST(:statuses AS TEXT) IS NULL
       OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
  AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
  AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\')
ORDER BY +created_at_us, id
LIMIT :page_size;

-- name: list_uploads_of_status :many
-- params: session_id, status, before_us, before_id, from_us, min_size, max_size, protocol?, page_size
-- A page of a session's uploads of a status other than completed, as list_uploads. It is asked in an index that has no
-- completed ones, which the statement has to say.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND status = :status
  AND status <> 'completed'
  AND (created_at_us, id) < (:before_us, :before_id)
  AND created_at_us >= :from_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us DESC, id DESC
LIMIT :page_size;

-- name: list_uploads_of_status_oldest :many
-- params: session_id, status, after_us, after_id, until_us, min_size, max_size, protocol?, page_size
-- The same, oldest first, as list_uploads_oldest.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND status = :status
  AND status <> 'completed'
  AND (created_at_us, id) > (:after_us, :after_id)
  AND created_at_us <= :until_us
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us, id
LIMIT :page_size;

-- name: list_stored :many
-- params: after_id, page_size
-- The uploads that storage must hold, over all sessions, by id: one page from just after after_id.
SELECT id, size_bytes, sha256
FROM uploads
WHERE status = 'completed'
  AND id > :after_id
ORDER BY id
LIMIT :page_size;

-- name: list_uploads_to_delete :many
-- params: now_us, page_size
-- Completed uploads whose time is over, over all sessions, the longest first: one page.
SELECT id
FROM uploads
WHERE keep_us IS NOT NULL
  AND status = 'completed'
  AND completed_at_us + keep_us <= :now_us
ORDER BY completed_at_us + keep_us
LIMIT :page_size;

-- name: list_damaged :many
-- params: after_id, page_size
-- The uploads that storage should hold but that were found damaged, over all sessions, by id: one page from just after
-- after_id. An upload that never was completed can be lost too; it has no time of completion.
SELECT id, size_bytes, sha256
FROM uploads
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL
  AND id > :after_id
ORDER BY id
LIMIT :page_size;

-- name: count_uploads :one
-- params: session_id, from_us, until_us, min_size, max_size, statuses?, protocol?, sha256?, pattern?
-- The number of a session's uploads that list_uploads finds over all pages.
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
-- The number of uploads that storage must hold, over all sessions.
SELECT count(*) AS uploads
FROM uploads
WHERE status = 'completed';

-- name: count_damaged :one
-- params: none
-- The number of uploads that storage should hold but that were found damaged, over all sessions.
SELECT count(*) AS uploads
FROM uploads
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL;

-- name: find_upload_span :one
-- params: session_id
-- The creation times of a session's first upload and its last one.
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
-- Note progress of a resumable upload, or that it is being assembled.
UPDATE uploads
SET size_bytes = :size_bytes, status = :status
WHERE id = :upload_id
  AND status IN ('uploading', 'processing');

-- name: end_upload :run
-- params: upload_id, status, error_code?, error_detail?
-- Record that a resumable upload will never be completed.
UPDATE uploads
SET status = :status, error_code = CAST(:error_code AS TEXT), error_detail = CAST(:error_detail AS TEXT)
WHERE id = :upload_id
  AND status IN ('uploading', 'processing');

-- name: try_recording :run
-- params: none
-- Change nothing, but fail or wait for whatever would keep an upload from being recorded now.
UPDATE uploads
SET status = status
WHERE FALSE;

-- name: delete_failed_uploads :many
-- params: created_before_us, page_size
-- Delete records of failed or expired uploads that were never completed and were begun before then, a page at most. A
-- resumable upload stays as long as its key is remembered. The ids of those deleted.
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
