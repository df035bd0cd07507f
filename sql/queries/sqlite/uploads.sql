-- uploads: lists, which travel as one JSON parameter. Differs from postgresql: json_each unpacks it.

-- name: insert_uploads :run
-- params: rows
-- Add uploads, given as one JSON array of row objects; an existing record stays as it is, unless its upload was still
-- being received. An upload whose session has joined another one meanwhile is recorded for that one. The WHERE keeps
-- SQLite from reading ON CONFLICT as part of a join.
INSERT INTO uploads (id, session_id, filename, filename_folded, content_type, size_bytes, sha256, status, protocol,
                     error_code, error_detail, created_at_us, completed_at_us, metadata, path, path_folded, keep_us)
SELECT value ->> 'id',
       coalesce((SELECT merged_into_id FROM sessions WHERE id = value ->> 'session_id'), value ->> 'session_id'),
       value ->> 'filename', value ->> 'filename_folded', value ->> 'content_type', value ->> 'size_bytes',
       value ->> 'sha256', value ->> 'status', value ->> 'protocol', value ->> 'error_code', value ->> 'error_detail',
       value ->> 'created_at_us', value ->> 'completed_at_us', value ->> 'metadata', value ->> 'path',
       value ->> 'path_folded', value ->> 'keep_us'
FROM json_each(:rows)
WHERE TRUE
ON CONFLICT (id) DO UPDATE
SET size_bytes = excluded.size_bytes, sha256 = excluded.sha256, status = excluded.status,
    error_code = excluded.error_code, error_detail = excluded.error_detail,
    completed_at_us = excluded.completed_at_us
WHERE uploads.status IN ('uploading', 'processing');

-- name: lock_uploads :many
-- params: rows
-- Lock all rows that adding these uploads changes until the transaction ends: their sessions, the uploads that are
-- recorded already, and the totals. Differs from postgresql: nobody changes anything meanwhile.
WITH batch AS (
    SELECT value ->> 'session_id' AS session_id
    FROM json_each(:rows)
)
SELECT session_id
FROM batch
WHERE FALSE;

-- name: list_named_uploads :many
-- params: session_id, before_us, before_id, from_us, pattern, min_size, max_size, statuses?, protocol?, page_size
-- A page of the uploads of a session whose name fits the pattern, as list_uploads. Differs from postgresql: SQLite
-- checks the name in the index by itself, and fetches no row that does not fit.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) < (:before_us, :before_id)
  AND created_at_us >= :from_us
  AND filename_folded LIKE :pattern ESCAPE '\'
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us DESC, id DESC
LIMIT :page_size;

-- name: list_named_uploads_oldest :many
-- params: session_id, after_us, after_id, until_us, pattern, min_size, max_size, statuses?, protocol?, page_size
-- The same, oldest first, as list_uploads_oldest.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE session_id = :session_id
  AND (created_at_us, id) > (:after_us, :after_id)
  AND created_at_us <= :until_us
  AND filename_folded LIKE :pattern ESCAPE '\'
  AND coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY created_at_us, id
LIMIT :page_size;

-- name: search_uploads :many
-- params: session_id, by, after_key?, after_id, from_us, until_us, min_size, max_size, sha256?, protocol?, statuses?, pattern?, path_pattern?, ids?, content_types?, metadata?, page_size
-- A page of the uploads of a session that pass all filters, by any order: 'name', 'size' or 'time'. The lists are JSON
-- arrays: ids; patterns, one of which the content type must fit; texts, all of which must stand in the metadata. No
-- index has all of that, so every record of the session is looked at.
-- Differs from postgresql: json_each unpacks the lists, and text compares by its bytes.
WITH keyed AS (
    SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
           error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us,
           CASE CAST(:by AS TEXT)
               WHEN 'name' THEN filename_folded
               WHEN 'size' THEN substr('00000000000000000000' || size_bytes, -20)
               ELSE substr('00000000000000000000' || created_at_us, -20)
           END AS sort_key
    FROM uploads
    WHERE session_id = :session_id
      AND created_at_us BETWEEN :from_us AND :until_us
      AND size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\')
      AND (CAST(:path_pattern AS TEXT) IS NULL OR path_folded LIKE CAST(:path_pattern AS TEXT) ESCAPE '\')
      AND (CAST(:ids AS TEXT) IS NULL OR id IN (SELECT value FROM json_each(CAST(:ids AS TEXT))))
      AND (CAST(:content_types AS TEXT) IS NULL
           OR EXISTS (SELECT 1
                      FROM json_each(CAST(:content_types AS TEXT)) AS wanted
                      WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
      AND NOT EXISTS (SELECT 1
                      FROM json_each(CAST(:metadata AS TEXT)) AS wanted
                      WHERE coalesce(instr(uploads.metadata, wanted.value), 0) = 0)
)
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us,
       sort_key
FROM keyed
WHERE CAST(:after_key AS TEXT) IS NULL
   OR (sort_key, id) > (CAST(:after_key AS TEXT), CAST(:after_id AS TEXT))
ORDER BY sort_key, id
LIMIT :page_size;

-- name: search_uploads_descending :many
-- params: session_id, by, after_key?, after_id, from_us, until_us, min_size, max_size, sha256?, protocol?, statuses?, pattern?, path_pattern?, ids?, content_types?, metadata?, page_size
-- The same, from the last to the first.
WITH keyed AS (
    SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
           error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us,
           CASE CAST(:by AS TEXT)
               WHEN 'name' THEN filename_folded
               WHEN 'size' THEN substr('00000000000000000000' || size_bytes, -20)
               ELSE substr('00000000000000000000' || created_at_us, -20)
           END AS sort_key
    FROM uploads
    WHERE session_id = :session_id
      AND created_at_us BETWEEN :from_us AND :until_us
      AND size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\')
      AND (CAST(:path_pattern AS TEXT) IS NULL OR path_folded LIKE CAST(:path_pattern AS TEXT) ESCAPE '\')
      AND (CAST(:ids AS TEXT) IS NULL OR id IN (SELECT value FROM json_each(CAST(:ids AS TEXT))))
      AND (CAST(:content_types AS TEXT) IS NULL
           OR EXISTS (SELECT 1
                      FROM json_each(CAST(:content_types AS TEXT)) AS wanted
                      WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
      AND NOT EXISTS (SELECT 1
                      FROM json_each(CAST(:metadata AS TEXT)) AS wanted
                      WHERE coalesce(instr(uploads.metadata, wanted.value), 0) = 0)
)
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us,
       sort_key
FROM keyed
WHERE CAST(:after_key AS TEXT) IS NULL
   OR (sort_key, id) < (CAST(:after_key AS TEXT), CAST(:after_id AS TEXT))
ORDER BY sort_key DESC, id DESC
LIMIT :page_size;

-- name: count_found_uploads :one
-- params: session_id, from_us, until_us, min_size, max_size, sha256?, protocol?, statuses?, pattern?, path_pattern?, ids?, content_types?, metadata?
-- The number of a session's uploads that search_uploads finds over all pages.
SELECT count(*) AS uploads
FROM uploads
WHERE session_id = :session_id
  AND created_at_us BETWEEN :from_us AND :until_us
  AND size_bytes BETWEEN :min_size AND :max_size
  AND (CAST(:sha256 AS TEXT) IS NULL OR sha256 = CAST(:sha256 AS TEXT))
  AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT))
  AND (CAST(:statuses AS TEXT) IS NULL
       OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
  AND (CAST(:pattern AS TEXT) IS NULL OR filename_folded LIKE CAST(:pattern AS TEXT) ESCAPE '\')
  AND (CAST(:path_pattern AS TEXT) IS NULL OR path_folded LIKE CAST(:path_pattern AS TEXT) ESCAPE '\')
  AND (CAST(:ids AS TEXT) IS NULL OR id IN (SELECT value FROM json_each(CAST(:ids AS TEXT))))
  AND (CAST(:content_types AS TEXT) IS NULL
       OR EXISTS (SELECT 1
                  FROM json_each(CAST(:content_types AS TEXT)) AS wanted
                  WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
  AND NOT EXISTS (SELECT 1
                  FROM json_each(CAST(:metadata AS TEXT)) AS wanted
                  WHERE coalesce(instr(uploads.metadata, wanted.value), 0) = 0);

-- name: list_uploads_by_id :many
-- params: ids
-- Each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: list_statuses :many
-- params: ids
-- The status of each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, status
FROM uploads
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: delete_session_uploads :many
-- params: session_id, ids, now_us, deleted_since_us
-- Record that the bytes of a session's completed uploads of a JSON array of ids, damaged or not, are deleted; their
-- records stay. The ids of those, and of such as were deleted since deleted_since_us. An upload that is still moving
-- with its session into another one belongs to that one.
UPDATE uploads
SET status = 'deleted', error_code = NULL, error_detail = NULL,
    deleted_at_us = CASE WHEN status = 'deleted' THEN deleted_at_us ELSE CAST(:now_us AS BIGINT) END
WHERE id IN (SELECT value FROM json_each(:ids))
  AND (session_id = :session_id
       OR session_id IN (SELECT merged.id FROM sessions AS merged WHERE merged.merged_into_id = :session_id))
  AND (status = 'completed'
       OR (error_code IN ('lost', 'damaged') AND completed_at_us IS NOT NULL)
       OR (status = 'deleted' AND deleted_at_us > :deleted_since_us))
RETURNING id;

-- name: delete_uploads :many
-- params: ids, now_us
-- Record that the bytes of completed uploads of a JSON array of ids are deleted; their records stay. The ids of those
-- changed.
UPDATE uploads
SET status = 'deleted', deleted_at_us = :now_us
WHERE status = 'completed'
  AND id IN (SELECT value FROM json_each(:ids))
RETURNING id;

-- name: fail_uploads :many
-- params: ids, code, detail
-- Record that completed uploads of a JSON array of ids are lost or damaged. The ids of those changed.
UPDATE uploads
SET status = 'failed', error_code = :code, error_detail = :detail
WHERE status = 'completed'
  AND id IN (SELECT value FROM json_each(:ids))
RETURNING id;

-- name: repair_uploads :many
-- params: ids
-- Record that damaged uploads of a JSON array of ids are intact after all. The ids of those changed.
UPDATE uploads
SET status = 'completed', error_code = NULL, error_detail = NULL
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL
  AND id IN (SELECT value FROM json_each(:ids))
RETURNING id;
