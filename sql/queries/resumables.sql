-- resumables: one row per upload that comes in several requests. Lists are in the dialects' folders.

-- name: insert_resumable :one
-- params: key_hash, upload_id, session_id, protocol, filename, content_type, created_at_us, length_bytes?, metadata?, concat?, is_part, parts?, expected_sha256?, expected_sha512?, expires_at_us, last_expires_at_us
-- Add an upload at offset 0; an existing one stays as it is, and gives no row. If its session has joined another one
-- meanwhile, it is recorded for that one.
INSERT INTO resumables (key_hash, upload_id, session_id, protocol, filename, content_type, created_at_us, length_bytes,
                        offset_bytes, metadata, concat, is_part, parts, expected_sha256, expected_sha512, file_fence, fence,
                        expires_at_us, last_expires_at_us)
VALUES (:key_hash, :upload_id,
        coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = :session_id), :session_id),
        :protocol, :filename, :content_type, :created_at_us, CAST(:length_bytes AS BIGINT),
        0, CAST(:metadata AS TEXT), CAST(:concat AS TEXT), :is_part, CAST(:parts AS TEXT),
        CAST(:expected_sha256 AS TEXT), CAST(:expected_sha512 AS TEXT), 0, 0,
        :expires_at_us, :last_expires_at_us)
ON CONFLICT (key_hash) DO NOTHING
RETURNING key_hash;

-- name: find_resumable :one
-- params: key_hash
-- An upload with its record, whatever became of it. A part has no record. An upload of a session that joined another
-- one belongs to that one, also while it is moving.
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
WHERE resumables.key_hash = :key_hash;

-- name: list_due_resumables :many
-- params: now_us, after_us, after_key, page_size
-- Expired uploads that have not ended and wait for bytes, or are parts, longest first: one page from just after that
-- time and key. A fully received one is to be completed instead; if that fails for days, its bytes are missing.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.expected_sha512, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.holder_id, resumables.holder_seen_us, resumables.expires_at_us, resumables.last_expires_at_us,
       resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us, uploads.metadata AS upload_metadata, uploads.path, uploads.keep_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.expires_at_us BETWEEN :after_us AND :now_us
  AND (resumables.expires_at_us, resumables.key_hash) > (:after_us, :after_key)
  AND resumables.ended_as IS NULL
  AND (resumables.is_part = 1
       OR resumables.length_bytes IS NULL
       OR resumables.length_bytes <> resumables.offset_bytes
       OR resumables.last_expires_at_us <= :now_us - 86400000000)
ORDER BY resumables.expires_at_us, resumables.key_hash
LIMIT :page_size;

-- name: list_left_resumables :many
-- params: after_key, page_size
-- Uploads that are fully received, or being assembled, and have not ended: one page from just after after_key.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.expected_sha512, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.holder_id, resumables.holder_seen_us, resumables.expires_at_us, resumables.last_expires_at_us,
       resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us, uploads.metadata AS upload_metadata, uploads.path, uploads.keep_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.ended_as IS NULL
  AND resumables.is_part = 0
  AND (resumables.offset_bytes = resumables.length_bytes
       OR (resumables.parts IS NOT NULL AND resumables.holder IS NOT NULL))
  AND resumables.key_hash > :after_key
ORDER BY resumables.key_hash
LIMIT :page_size;

-- name: list_unfinished_resumables :many
-- params: after_us, after_key, until_us, page_size
-- Uploads that wait for bytes, have a record and expire by until_us: one page from just after that time and key.
SELECT key_hash, upload_id, expires_at_us
FROM resumables
WHERE expires_at_us BETWEEN :after_us AND :until_us
  AND (expires_at_us, key_hash) > (:after_us, :after_key)
  AND ended_as IS NULL
  AND is_part = 0
  AND (length_bytes IS NULL OR length_bytes <> offset_bytes)
ORDER BY expires_at_us, key_hash
LIMIT :page_size;

-- name: list_made_of_parts :many
-- params: after_key, until_us, page_size
-- Concatenations that have not ended, and would expire by until_us: one page from just after after_key.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.expected_sha512, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.holder_id, resumables.holder_seen_us, resumables.expires_at_us, resumables.last_expires_at_us,
       resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us, uploads.metadata AS upload_metadata, uploads.path, uploads.keep_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.parts IS NOT NULL
  AND resumables.ended_as IS NULL
  AND resumables.key_hash > :after_key
  AND resumables.expires_at_us <= :until_us
ORDER BY resumables.key_hash
LIMIT :page_size;

-- name: list_waiting_resumables :many
-- params: key_hash
-- Concatenations that include this part and have not ended.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.expected_sha512, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.holder_id, resumables.holder_seen_us, resumables.expires_at_us, resumables.last_expires_at_us,
       resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us, uploads.metadata AS upload_metadata, uploads.path, uploads.keep_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
JOIN concatenation_parts ON concatenation_parts.key_hash = resumables.key_hash
WHERE concatenation_parts.part_key_hash = :key_hash
  AND resumables.ended_as IS NULL;

-- name: count_waiting_concatenations :one
-- params: session_id
-- The number of a session's concatenations that have not ended.
SELECT count(*) AS waiting
FROM resumables
WHERE session_id = :session_id
  AND parts IS NOT NULL
  AND ended_as IS NULL;

-- name: acquire_resumable :one
-- params: key_hash, holder_id?, now_us
-- Draw a fencing token as the newest request for the writer lock; with a holder_id, acquire the lock if it is free.
UPDATE resumables
SET fence = fence + 1,
    holder_id = CASE WHEN CAST(:holder_id AS TEXT) IS NULL OR holder IS NOT NULL THEN holder_id
                     ELSE CAST(:holder_id AS TEXT) END,
    holder_seen_us = CASE WHEN CAST(:holder_id AS TEXT) IS NULL OR holder IS NOT NULL THEN holder_seen_us
                          ELSE :now_us END,
    holder = CASE WHEN CAST(:holder_id AS TEXT) IS NULL OR holder IS NOT NULL THEN holder ELSE fence + 1 END
WHERE key_hash = :key_hash
  AND ended_as IS NULL
RETURNING fence;

-- name: preempt_resumable :one
-- params: key_hash, fence, holder_id?, now_us
-- Preempt the holder of the writer lock, for the caller if there is a holder_id. No row: the caller is not the newest
-- any more.
UPDATE resumables
SET holder = CASE WHEN CAST(:holder_id AS TEXT) IS NOT NULL THEN fence END,
    holder_id = CAST(:holder_id AS TEXT),
    holder_seen_us = :now_us
WHERE key_hash = :key_hash
  AND fence = :fence
  AND ended_as IS NULL
RETURNING key_hash;

-- name: see_resumable :one
-- params: key_hash, held_by, held_by_id, now_us
-- Note that the holder is at work. No row: it has lost the writer lock.
UPDATE resumables
SET holder_seen_us = :now_us
WHERE key_hash = :key_hash
  AND holder = :held_by
  AND holder_id = :held_by_id
RETURNING key_hash;

-- name: commit_resumable :one
-- params: key_hash, held_by, held_by_id, holds, file_fence, offset_bytes, digest_state?, length_bytes?, expected_sha256?, expected_sha512?, expires_at_us
-- Commit offset, digest and file; the holder keeps the writer lock, or releases it if holds is 0. No row: the lock is
-- lost, and nothing is changed. The token alone would not identify the holder: after a fail-over that lost the last
-- commits it can be drawn twice.
UPDATE resumables
SET offset_bytes = :offset_bytes,
    digest_state = CAST(:digest_state AS TEXT),
    length_bytes = coalesce(CAST(:length_bytes AS BIGINT), length_bytes),
    expected_sha256 = CAST(:expected_sha256 AS TEXT),
    expected_sha512 = CAST(:expected_sha512 AS TEXT),
    file_fence = :file_fence,
    holder = CASE WHEN :holds = 1 THEN holder END,
    holder_id = CASE WHEN :holds = 1 THEN holder_id END,
    expires_at_us = :expires_at_us
WHERE key_hash = :key_hash
  AND holder = :held_by
  AND holder_id = :held_by_id
RETURNING key_hash;

-- name: release_resumable :run
-- params: key_hash, held_by, held_by_id
-- Release the writer lock, if the caller still holds it.
UPDATE resumables
SET holder = NULL,
    holder_id = NULL
WHERE key_hash = :key_hash
  AND holder = :held_by
  AND holder_id = :held_by_id;

-- name: lock_resumable :one
-- params: key_hash, holder, holder_id, file_fence, offset_bytes
-- Lock an upload until the transaction ends, if it is as the caller saw it: with this holder (0 and no id: with none),
-- with so many bytes in this file. No row: others have gone on with it.
UPDATE resumables
SET fence = fence
WHERE key_hash = :key_hash
  AND coalesce(holder, 0) = :holder
  AND (holder IS NULL OR coalesce(holder_id, '') = :holder_id)
  AND file_fence = :file_fence
  AND offset_bytes = :offset_bytes
RETURNING key_hash;

-- name: end_resumable :one
-- params: key_hash, ended_as, expires_at_us, due_us
-- End an upload, unless it has ended or would not expire by due_us; a completed one can still be cancelled.
UPDATE resumables
SET ended_as = CAST(:ended_as AS TEXT),
    holder = NULL,
    holder_id = NULL,
    fence = fence + 1,
    expires_at_us = :expires_at_us
WHERE key_hash = :key_hash
  AND resumables.expires_at_us <= :due_us
  AND (ended_as IS NULL OR (ended_as = 'completed' AND CAST(:ended_as AS TEXT) = 'cancelled'))
RETURNING key_hash;

-- name: delete_ended_resumables :many
-- params: now_us, page_size
-- Delete ended uploads whose time to be remembered is over, a page at most.
DELETE FROM resumables
WHERE ended_as IS NOT NULL
  AND key_hash IN (SELECT old.key_hash
                   FROM resumables AS old
                   WHERE old.expires_at_us <= :now_us
                     AND old.ended_as IS NOT NULL
                   ORDER BY old.expires_at_us
                   LIMIT :page_size)
RETURNING key_hash;

-- name: list_unfinished_files :many
-- params: after_id, page_size
-- The files of uploads that have not ended, by upload: one page from just after after_id.
SELECT upload_id, file_fence, offset_bytes, digest_state
FROM resumables
WHERE ended_as IS NULL
  AND offset_bytes > 0
  AND upload_id > :after_id
ORDER BY upload_id
LIMIT :page_size;
