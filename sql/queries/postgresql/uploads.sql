-- uploads: lists, which travel as one JSON parameter. Differs from sqlite: jsonb functions unpack it.

-- name: insert_uploads :run
-- params: rows
-- Add uploads, given as one JSON array of row objects; an existing record stays as it is, unless its upload was still
-- being received. An upload whose session has joined another one meanwhile is recorded for that one. FOR KEY SHARE: a
-- session that is joining another one just now is waited for, and waits for us, so that no upload is left behind.
INSERT INTO uploads (id, session_id, filename, filename_folded, content_type, size_bytes, sha256, status, protocol,
                     error_code, error_detail, created_at_us, completed_at_us, metadata, path, path_folded, keep_us)
SELECT r.id,
       coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = r.session_id FOR KEY SHARE), r.session_id),
       r.filename, r.filename_folded, r.content_type, r.size_bytes, r.sha256, r.status, r.protocol,
       r.error_code, r.error_detail, r.created_at_us, r.completed_at_us, r.metadata, r.path, r.path_folded, r.keep_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
    id TEXT COLLATE "C", session_id TEXT COLLATE "C", filename TEXT, filename_folded TEXT, content_type TEXT,
    size_bytes BIGINT, sha256 TEXT, status TEXT, protocol TEXT, error_code TEXT, error_detail TEXT,
    created_at_us BIGINT, completed_at_us BIGINT, metadata TEXT, path TEXT, path_folded TEXT, keep_us BIGINT
)
ON CONFLICT (id) DO UPDATE
SET size_bytes = excluded.size_bytes, sha256 = excluded.sha256, status = excluded.status,
    error_code = excluded.error_code, error_detail = excluded.error_detail,
    completed_at_us = excluded.completed_at_us
WHERE uploads.status IN ('uploading', 'processing');

-- name: lock_uploads :many
-- params: rows
-- Lock all rows that adding these uploads changes until the transaction ends: their sessions, the uploads that are
-- recorded already, and the totals, in the order in which every transaction locks them.
WITH batch AS MATERIALIZED (
    SELECT r.id, r.status,
           coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = r.session_id FOR KEY SHARE), r.session_id)
               AS session_id
    FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
        id TEXT COLLATE "C", session_id TEXT COLLATE "C", status TEXT COLLATE "C"
    )
), recorded AS MATERIALIZED (
    SELECT uploads.id, uploads.session_id, uploads.status
    FROM uploads
    WHERE uploads.id IN (SELECT id FROM batch)
    ORDER BY uploads.id
    FOR NO KEY UPDATE
)
INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
SELECT session_id, status, 0, 0, 0
FROM (SELECT session_id, status FROM recorded
      UNION
      SELECT coalesce(recorded.session_id, batch.session_id), batch.status
      FROM batch
      LEFT JOIN recorded ON recorded.id = batch.id) AS changed
ORDER BY session_id, status
ON CONFLICT (session_id, status) DO UPDATE
SET uploads = total.uploads
RETURNING session_id;

-- name: list_named_uploads :many
-- params: session_id, before_us, before_id, from_us, pattern, min_size, max_size, statuses?, protocol?, page_size
-- A page of the uploads of a session whose name fits the pattern, as list_uploads. Differs from sqlite: before it
-- fetches a row, PostgreSQL uses an index only for the order, so matching names are found in the index first, and their
-- rows fetched one by one. OFFSET 0 forces that; the reason for coalesce is given in list_uploads.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM (
    SELECT id AS named_id, created_at_us AS named_at_us
    FROM uploads
    WHERE session_id = :session_id
      AND (created_at_us, id) < (:before_us, :before_id)
      AND created_at_us >= :from_us
      AND coalesce(filename_folded LIKE :pattern ESCAPE '\', FALSE)
    ORDER BY created_at_us DESC, id DESC
    OFFSET 0
) AS named
CROSS JOIN LATERAL (SELECT * FROM uploads WHERE id = named_id OFFSET 0) AS uploads
WHERE coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY named_at_us DESC, named_id DESC
LIMIT :page_size;

-- name: list_named_uploads_oldest :many
-- params: session_id, after_us, after_id, until_us, pattern, min_size, max_size, statuses?, protocol?, page_size
-- The same, oldest first, as list_uploads_oldest.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM (
    SELECT id AS named_id, created_at_us AS named_at_us
    FROM uploads
    WHERE session_id = :session_id
      AND (created_at_us, id) > (:after_us, :after_id)
      AND created_at_us <= :until_us
      AND coalesce(filename_folded LIKE :pattern ESCAPE '\', FALSE)
    ORDER BY created_at_us, id
    OFFSET 0
) AS named
CROSS JOIN LATERAL (SELECT * FROM uploads WHERE id = named_id OFFSET 0) AS uploads
WHERE coalesce(
      size_bytes BETWEEN :min_size AND :max_size
      AND (CAST(:statuses AS TEXT) IS NULL
           OR replace(CAST(:statuses AS TEXT), '"' || status || '"', '') <> CAST(:statuses AS TEXT))
      AND (CAST(:protocol AS TEXT) IS NULL OR protocol = CAST(:protocol AS TEXT)),
      FALSE)
ORDER BY named_at_us, named_id
LIMIT :page_size;

-- name: search_uploads :many
-- params: session_id, by, after_key?, after_id, from_us, until_us, min_size, max_size, sha256?, protocol?, statuses?, pattern?, path_pattern?, ids?, content_types?, metadata?, page_size
-- A page of the uploads of a session that pass all filters, by any order: 'name', 'size' or 'time'. The lists are JSON
-- arrays: ids; patterns, one of which the content type must fit; texts, all of which must stand in the metadata. No
-- index has all of that, so every record of the session is looked at.
-- Differs from sqlite: jsonb functions unpack the lists, and the key compares by its bytes.
WITH keyed AS (
    SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
           error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us,
           (CASE CAST(:by AS TEXT)
                WHEN 'name' THEN filename_folded
                WHEN 'size' THEN lpad(CAST(size_bytes AS TEXT), 20, '0')
                ELSE lpad(CAST(created_at_us AS TEXT), 20, '0')
            END) COLLATE "C" AS sort_key
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
      AND (CAST(:ids AS TEXT) IS NULL
           OR id IN (SELECT wanted.value
                     FROM jsonb_array_elements_text(CAST(CAST(:ids AS TEXT) AS JSONB)) AS wanted (value)))
      AND (CAST(:content_types AS TEXT) IS NULL
           OR EXISTS (SELECT 1
                      FROM jsonb_array_elements_text(CAST(CAST(:content_types AS TEXT) AS JSONB)) AS wanted (value)
                      WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
      AND NOT EXISTS (SELECT 1
                      FROM jsonb_array_elements_text(CAST(CAST(:metadata AS TEXT) AS JSONB)) AS wanted (value)
                      WHERE coalesce(strpos(uploads.metadata, wanted.value), 0) = 0)
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
           (CASE CAST(:by AS TEXT)
                WHEN 'name' THEN filename_folded
                WHEN 'size' THEN lpad(CAST(size_bytes AS TEXT), 20, '0')
                ELSE lpad(CAST(created_at_us AS TEXT), 20, '0')
            END) COLLATE "C" AS sort_key
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
      AND (CAST(:ids AS TEXT) IS NULL
           OR id IN (SELECT wanted.value
                     FROM jsonb_array_elements_text(CAST(CAST(:ids AS TEXT) AS JSONB)) AS wanted (value)))
      AND (CAST(:content_types AS TEXT) IS NULL
           OR EXISTS (SELECT 1
                      FROM jsonb_array_elements_text(CAST(CAST(:content_types AS TEXT) AS JSONB)) AS wanted (value)
                      WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
      AND NOT EXISTS (SELECT 1
                      FROM jsonb_array_elements_text(CAST(CAST(:metadata AS TEXT) AS JSONB)) AS wanted (value)
                      WHERE coalesce(strpos(uploads.metadata, wanted.value), 0) = 0)
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
  AND (CAST(:ids AS TEXT) IS NULL
       OR id IN (SELECT wanted.value
                 FROM jsonb_array_elements_text(CAST(CAST(:ids AS TEXT) AS JSONB)) AS wanted (value)))
  AND (CAST(:content_types AS TEXT) IS NULL
       OR EXISTS (SELECT 1
                  FROM jsonb_array_elements_text(CAST(CAST(:content_types AS TEXT) AS JSONB)) AS wanted (value)
                  WHERE lower(content_type) LIKE wanted.value ESCAPE '\'))
  AND NOT EXISTS (SELECT 1
                  FROM jsonb_array_elements_text(CAST(CAST(:metadata AS TEXT) AS JSONB)) AS wanted (value)
                  WHERE coalesce(strpos(uploads.metadata, wanted.value), 0) = 0);

-- name: list_uploads_by_id :many
-- params: ids
-- Each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us, metadata, path, keep_us
FROM uploads
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: list_statuses :many
-- params: ids
-- The status of each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, status
FROM uploads
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: delete_session_uploads :many
-- params: session_id, ids, now_us, deleted_since_us
-- Record that the bytes of a session's completed uploads of a JSON array of ids, damaged or not, are deleted; their
-- records stay. The ids of those, and of such as were deleted since deleted_since_us. An upload that is still moving
-- with its session into another one belongs to that one. Differs from sqlite: rows are locked in the order of their
-- ids, here and below, to avoid deadlocks.
WITH these AS MATERIALIZED (
    SELECT id
    FROM uploads
    WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
      AND (session_id = :session_id
           OR session_id IN (SELECT merged.id FROM sessions AS merged WHERE merged.merged_into_id = :session_id))
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE uploads
SET status = 'deleted', error_code = NULL, error_detail = NULL,
    deleted_at_us = CASE WHEN status = 'deleted' THEN deleted_at_us ELSE CAST(:now_us AS BIGINT) END
FROM these
WHERE uploads.id = these.id
  AND (uploads.status = 'completed'
       OR (uploads.error_code IN ('lost', 'damaged') AND uploads.completed_at_us IS NOT NULL)
       OR (uploads.status = 'deleted' AND uploads.deleted_at_us > :deleted_since_us))
RETURNING uploads.id;

-- name: delete_uploads :many
-- params: ids, now_us
-- Record that the bytes of completed uploads of a JSON array of ids are deleted; their records stay. The ids of those
-- changed.
UPDATE uploads
SET status = 'deleted', deleted_at_us = :now_us
WHERE status = 'completed'
  AND id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
RETURNING id;

-- name: fail_uploads :many
-- params: ids, code, detail
-- Record that completed uploads of a JSON array of ids are lost or damaged. The ids of those changed.
WITH these AS MATERIALIZED (
    SELECT id
    FROM uploads
    WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE uploads
SET status = 'failed', error_code = :code, error_detail = :detail
FROM these
WHERE uploads.id = these.id
  AND uploads.status = 'completed'
RETURNING uploads.id;

-- name: repair_uploads :many
-- params: ids
-- Record that damaged uploads of a JSON array of ids are intact after all. The ids of those changed.
WITH these AS MATERIALIZED (
    SELECT id
    FROM uploads
    WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE uploads
SET status = 'completed', error_code = NULL, error_detail = NULL
FROM these
WHERE uploads.id = these.id
  AND uploads.error_code IN ('lost', 'damaged')
  AND uploads.completed_at_us IS NOT NULL
RETURNING uploads.id;
