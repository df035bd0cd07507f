-- uploads: batches, which travel as one JSON parameter. Differs from sqlite: jsonb functions unpack it.

-- name: insert_uploads :run
-- params: rows
-- Add a batch, given as one JSON array of row objects; what is already there stays as it is, but one that
-- was on its way in has arrived, or failed. An upload whose session has meanwhile joined another one is
-- recorded for that one. FOR KEY SHARE: a session that is joining another one just now is waited for, and
-- waits for us, so that no upload is left behind.
INSERT INTO uploads (id, session_id, filename, filename_folded, content_type, size_bytes, sha256, status, protocol,
                     error_code, error_detail, created_at_us, completed_at_us)
SELECT r.id,
       coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = r.session_id FOR KEY SHARE), r.session_id),
       r.filename, r.filename_folded, r.content_type, r.size_bytes, r.sha256, r.status, r.protocol,
       r.error_code, r.error_detail, r.created_at_us, r.completed_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
    id TEXT COLLATE "C", session_id TEXT COLLATE "C", filename TEXT, filename_folded TEXT, content_type TEXT,
    size_bytes BIGINT, sha256 TEXT, status TEXT, protocol TEXT, error_code TEXT, error_detail TEXT,
    created_at_us BIGINT, completed_at_us BIGINT
)
ON CONFLICT (id) DO UPDATE
SET size_bytes = excluded.size_bytes, sha256 = excluded.sha256, status = excluded.status,
    error_code = excluded.error_code, error_detail = excluded.error_detail,
    completed_at_us = excluded.completed_at_us
WHERE uploads.status IN ('uploading', 'processing');

-- name: list_uploads_by_id :many
-- params: ids
-- Each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, session_id, filename, content_type, size_bytes, sha256, status, protocol,
       error_code, error_detail, created_at_us, completed_at_us
FROM uploads
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: list_statuses :many
-- params: ids
-- The status of each upload of a JSON array of ids, over all sessions; unknown ids are left out.
SELECT id, status
FROM uploads
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: fail_uploads :many
-- params: ids, code, detail
-- Completed uploads of a JSON array of ids turn out not to be there. The ids of those changed.
UPDATE uploads
SET status = 'failed', error_code = :code, error_detail = :detail
WHERE status = 'completed'
  AND id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
RETURNING id;

-- name: mend_uploads :many
-- params: ids
-- Uploads of a JSON array of ids that were found damaged turn out to be whole. The ids of those changed.
UPDATE uploads
SET status = 'completed', error_code = NULL, error_detail = NULL
WHERE error_code IN ('lost', 'damaged')
  AND completed_at_us IS NOT NULL
  AND id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
RETURNING id;
