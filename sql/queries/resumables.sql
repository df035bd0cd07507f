-- resumables: one row per upload that comes in several requests. Batches are in the dialects' folders.

-- name: insert_resumable :run
-- params: key_hash, upload_id, session_id, protocol, filename, content_type, created_at_us, length_bytes?, metadata?, concat?, is_part, parts?, expected_sha256?, expires_at_us, last_expires_at_us
-- A new one, of which nothing has come yet; what is already there stays as it is. One whose session has meanwhile
-- joined another one is recorded for that one.
INSERT INTO resumables (key_hash, upload_id, session_id, protocol, filename, content_type, created_at_us, length_bytes,
                        offset_bytes, metadata, concat, is_part, parts, expected_sha256, file_fence, fence,
                        expires_at_us, last_expires_at_us)
VALUES (:key_hash, :upload_id,
        coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = :session_id), :session_id),
        :protocol, :filename, :content_type, :created_at_us, CAST(:length_bytes AS BIGINT),
        0, CAST(:metadata AS TEXT), CAST(:concat AS TEXT), :is_part, CAST(:parts AS TEXT),
        CAST(:expected_sha256 AS TEXT), 0, 0,
        :expires_at_us, :last_expires_at_us)
ON CONFLICT (key_hash) DO NOTHING;

-- name: find_resumable :one
-- params: key_hash
-- One of them with its record, whatever became of it. A part has no record.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.expires_at_us, resumables.last_expires_at_us, resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.key_hash = :key_hash;

-- name: list_due_resumables :many
-- params: now_us, page_size
-- Those that have not ended, still wait for bytes, or are parts, and whose time is over, longest first.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.expires_at_us, resumables.last_expires_at_us, resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.expires_at_us <= :now_us
  AND resumables.ended_as IS NULL
  AND (resumables.is_part = 1
       OR resumables.length_bytes IS NULL
       OR resumables.length_bytes <> resumables.offset_bytes)
ORDER BY resumables.expires_at_us
LIMIT :page_size;

-- name: list_left_resumables :many
-- params: until_us, page_size
-- Those that have all their bytes, or that are made of parts, and yet have not ended; nobody has touched them for long
-- enough that they would expire by until_us.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.expires_at_us, resumables.last_expires_at_us, resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.expires_at_us <= :until_us
  AND resumables.ended_as IS NULL
  AND resumables.is_part = 0
  AND (resumables.offset_bytes = resumables.length_bytes OR resumables.parts IS NOT NULL)
ORDER BY resumables.expires_at_us
LIMIT :page_size;

-- name: list_waiting_resumables :many
-- params: key_hash
-- Those that are made of this part, among others, and have not ended.
SELECT resumables.key_hash, resumables.upload_id, resumables.session_id, resumables.protocol, resumables.filename,
       resumables.content_type, resumables.created_at_us, resumables.length_bytes, resumables.offset_bytes,
       resumables.digest_state, resumables.metadata, resumables.concat, resumables.is_part, resumables.parts,
       resumables.expected_sha256, resumables.file_fence, resumables.fence, resumables.holder,
       resumables.expires_at_us, resumables.last_expires_at_us, resumables.ended_as,
       uploads.size_bytes, uploads.sha256, uploads.status, uploads.error_code, uploads.error_detail,
       uploads.completed_at_us
FROM resumables
LEFT JOIN uploads ON uploads.id = resumables.upload_id
WHERE resumables.parts IS NOT NULL
  AND resumables.ended_as IS NULL
  AND replace(resumables.parts, :key_hash, '') <> resumables.parts;

-- name: claim_resumable :one
-- params: key_hash, holds
-- The caller is the newest that wants it. If holds is 1 and nobody else holds it, the caller does from now on.
UPDATE resumables
SET fence = fence + 1,
    holder = CASE WHEN :holds = 1 AND holder IS NULL THEN fence + 1 ELSE holder END
WHERE key_hash = :key_hash
  AND ended_as IS NULL
RETURNING fence, holder;

-- name: pass_resumable :one
-- params: key_hash, fence, holder?
-- Whoever held it holds it no longer: a holder instead, or nobody. No row: the caller is not the newest any more.
UPDATE resumables
SET holder = CAST(:holder AS BIGINT)
WHERE key_hash = :key_hash
  AND fence = :fence
  AND ended_as IS NULL
RETURNING key_hash;

-- name: commit_resumable :one
-- params: key_hash, held_by, holder?, file_fence, offset_bytes, digest_state?, length_bytes?, expires_at_us
-- So many bytes are durable in that file. No row: held_by does not hold it any more, and nothing is changed.
UPDATE resumables
SET offset_bytes = :offset_bytes,
    digest_state = CAST(:digest_state AS TEXT),
    length_bytes = coalesce(CAST(:length_bytes AS BIGINT), length_bytes),
    file_fence = :file_fence,
    holder = CAST(:holder AS BIGINT),
    expires_at_us = :expires_at_us
WHERE key_hash = :key_hash
  AND holder = :held_by
RETURNING key_hash;

-- name: release_resumable :run
-- params: key_hash, held_by
-- held_by holds it no longer, if it did.
UPDATE resumables
SET holder = NULL
WHERE key_hash = :key_hash
  AND holder = :held_by;

-- name: end_resumable :one
-- params: key_hash, ended_as, expires_at_us, due_us
-- It has ended, unless it had before or would not expire by due_us; one that is completed can still be cancelled.
UPDATE resumables
SET ended_as = CAST(:ended_as AS TEXT),
    holder = NULL,
    fence = fence + 1,
    expires_at_us = :expires_at_us
WHERE key_hash = :key_hash
  AND resumables.expires_at_us <= :due_us
  AND (ended_as IS NULL OR (ended_as = 'completed' AND CAST(:ended_as AS TEXT) = 'cancelled'))
RETURNING key_hash;

-- name: move_resumables :run
-- params: from_id, into_id
-- All of one session become another's.
UPDATE resumables
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: move_merged_resumables :many
-- params: none
-- A repair: what is recorded for a session that has joined another one follows it there.
UPDATE resumables
SET session_id = sessions.merged_into_id
FROM sessions
WHERE sessions.merged_into_id IS NOT NULL
  AND resumables.session_id = sessions.id
RETURNING resumables.key_hash;

-- name: delete_ended_resumables :many
-- params: now_us
-- Those that ended and need not be remembered any longer go.
DELETE FROM resumables
WHERE expires_at_us <= :now_us
  AND ended_as IS NOT NULL
RETURNING key_hash;
