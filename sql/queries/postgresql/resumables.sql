-- resumables: lists, which travel as one JSON parameter. Differs from sqlite: jsonb functions unpack it.

-- name: insert_resumables :run
-- params: rows
-- Add uploads, given as one JSON array of row objects; an existing one stays as it is. If its session has joined another
-- one meanwhile, it is recorded for that one.
INSERT INTO resumables (key_hash, upload_id, session_id, protocol, filename, content_type, created_at_us, length_bytes,
                        offset_bytes, metadata, concat, is_part, expected_sha256, expected_sha512, file_fence, fence,
                        expires_at_us, last_expires_at_us, ended_as)
SELECT batch.key_hash, batch.upload_id, coalesce(sessions.merged_into_id, batch.session_id),
       batch.protocol, batch.filename, batch.content_type, batch.created_at_us,
       batch.length_bytes, batch.offset_bytes, batch.metadata, batch.concat, batch.is_part,
       batch.expected_sha256, batch.expected_sha512, 0, 0,
       batch.expires_at_us, batch.last_expires_at_us, batch.ended_as
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS batch (
    key_hash TEXT, upload_id TEXT, session_id TEXT, protocol TEXT, filename TEXT, content_type TEXT,
    created_at_us BIGINT, length_bytes BIGINT, offset_bytes BIGINT, metadata TEXT, concat TEXT, is_part BIGINT,
    expected_sha256 TEXT, expected_sha512 TEXT, expires_at_us BIGINT, last_expires_at_us BIGINT, ended_as TEXT)
LEFT JOIN sessions ON sessions.id = batch.session_id
ON CONFLICT (key_hash) DO NOTHING;

-- name: complete_resumables :many
-- params: rows
-- Complete uploads of which all bytes are received, given as one JSON array of row objects, and release their writer
-- locks; the keys of those whose holder still had the lock. The holder's id stays, so that a repetition does the same.
UPDATE resumables
SET offset_bytes = batch.length_bytes,
    length_bytes = batch.length_bytes,
    digest_state = NULL,
    expected_sha256 = batch.expected_sha256,
    expected_sha512 = batch.expected_sha512,
    ended_as = 'completed',
    holder = NULL,
    fence = resumables.fence + 1,
    expires_at_us = batch.expires_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS batch (
    key_hash TEXT, held_by BIGINT, held_by_id TEXT, length_bytes BIGINT, expected_sha256 TEXT, expected_sha512 TEXT,
    expires_at_us BIGINT)
WHERE resumables.key_hash = batch.key_hash
  AND resumables.holder_id = batch.held_by_id
  AND ((resumables.ended_as IS NULL AND resumables.holder = batch.held_by)
       OR resumables.ended_as = 'completed')
RETURNING resumables.key_hash;

-- name: acquire_resumables :run
-- params: rows, now_us
-- Draw fencing tokens as acquire_resumable does, for a JSON array of objects with a key and a holder's id.
UPDATE resumables
SET fence = resumables.fence + 1,
    holder_id = CASE WHEN resumables.holder IS NULL THEN batch.holder_id ELSE resumables.holder_id END,
    holder_seen_us = CASE WHEN resumables.holder IS NULL THEN :now_us ELSE resumables.holder_seen_us END,
    holder = coalesce(resumables.holder, resumables.fence + 1)
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS batch (key_hash TEXT, holder_id TEXT)
WHERE resumables.key_hash = batch.key_hash
  AND resumables.ended_as IS NULL;

-- name: list_resumables :many
-- params: key_hashes
-- The uploads of a JSON array of key hashes, with their records; unknown ones are left out.
SELECT resumables.key_hash, resumables.upload_id,
       coalesce(sessions.merged_into_id, resumables.session_id) AS session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.expected_sha512, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.holder_id, resumables.holder_seen_us, resumables.expires_at_us, resumables.last_expires_at_us,
       resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us, uploads.metadata AS upload_metadata, uploads.path, uploads.keep_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
LEFT JOIN sessions ON sessions.id = resumables.session_id
WHERE resumables.key_hash IN (SELECT jsonb_array_elements_text(CAST(:key_hashes AS JSONB)));

-- name: list_files_of_uploads :many
-- params: ids
-- The unfinished file of each upload of a JSON array of ids, and whether the upload has ended; unknown ids are left
-- out.
SELECT upload_id, file_fence, fence, ended_as
FROM resumables
WHERE upload_id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: renew_resumables :run
-- params: key_hashes, expires_at_us
-- Extend the expiry of uploads of a JSON array of key hashes that have not ended, but never past their last moment.
UPDATE resumables
SET expires_at_us = least(:expires_at_us, last_expires_at_us)
WHERE ended_as IS NULL
  AND key_hash IN (SELECT jsonb_array_elements_text(CAST(:key_hashes AS JSONB)));

-- name: list_ready_resumables :many
-- params: after_key, page_size
-- Concatenations without a holder: one page from just after after_key, and for each whether all its parts have stopped
-- growing.
SELECT waiting.key_hash,
       CASE WHEN EXISTS (SELECT 1
                         FROM jsonb_array_elements_text(CAST(waiting.parts AS JSONB)) AS needed (key_hash)
                         JOIN resumables AS part ON part.key_hash = needed.key_hash
                         WHERE part.ended_as IS NULL
                           AND (part.length_bytes IS NULL OR part.length_bytes <> part.offset_bytes))
            THEN 0 ELSE 1 END AS ready
FROM (SELECT key_hash, parts
      FROM resumables
      WHERE parts IS NOT NULL
        AND ended_as IS NULL
        AND holder IS NULL
        AND (length_bytes IS NULL OR length_bytes <> offset_bytes)
        AND key_hash > :after_key
      ORDER BY key_hash
      LIMIT :page_size) AS waiting
ORDER BY waiting.key_hash;

-- name: count_concatenations :one
-- params: part_key_hashes
-- Of the parts of a JSON array of key hashes, the one that is in most concatenations which have not failed, and their
-- number. No row: none of them is in any.
SELECT count(*) AS concatenations
FROM concatenation_parts
JOIN resumables ON resumables.key_hash = concatenation_parts.key_hash
WHERE concatenation_parts.part_key_hash IN (SELECT jsonb_array_elements_text(CAST(:part_key_hashes AS JSONB)))
  AND (resumables.ended_as IS NULL OR resumables.ended_as = 'completed')
GROUP BY concatenation_parts.part_key_hash
ORDER BY count(*) DESC
LIMIT 1;

-- name: list_offsets :many
-- params: session_ids, page_size
-- How far the unfinished uploads of some sessions are, which are given as a JSON array: a page, those used last first.
SELECT upload_id, session_id, offset_bytes, length_bytes
FROM resumables
WHERE session_id IN (SELECT jsonb_array_elements_text(CAST(:session_ids AS JSONB)))
  AND ended_as IS NULL
  AND is_part = 0
ORDER BY expires_at_us DESC
LIMIT :page_size;
