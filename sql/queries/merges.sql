-- merges: sessions that joined another one, and whose records are moving there, slice by slice. A trigger of sessions
-- adds them. The moves, in slices that wait for no lock, are in the dialects' folders.

-- name: list_merges :many
-- params: whole_before_us, page_size
-- Merges that have records left, as far as is known, or of which nothing was left for some time.
SELECT session_id, whole_at_us
FROM merges
WHERE whole_at_us IS NULL
   OR whole_at_us < :whole_before_us
ORDER BY session_id
LIMIT :page_size;

-- name: lock_merging_totals :run
-- params: from_id, into_id
-- Lock the totals of both sessions until the transaction ends; those of the second also where it has none yet.
INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
SELECT session_id, status, 0, 0, 0
FROM (SELECT session_id, status FROM session_totals WHERE session_id = :from_id
      UNION SELECT CAST(:into_id AS TEXT), 'uploading'
      UNION SELECT CAST(:into_id AS TEXT), 'processing'
      UNION SELECT CAST(:into_id AS TEXT), 'completed'
      UNION SELECT CAST(:into_id AS TEXT), 'failed'
      UNION SELECT CAST(:into_id AS TEXT), 'expired'
      UNION SELECT CAST(:into_id AS TEXT), 'deleted'
      UNION SELECT CAST(:into_id AS TEXT), 'granted') AS both_sessions
WHERE TRUE
ORDER BY status = 'granted', session_id, status
ON CONFLICT (session_id, status) DO UPDATE
SET uploads = session_totals.uploads;

-- name: forget_session_usage :run
-- params: from_id, into_id
-- Delete both sums of the older code, which counts them anew if needed: updating them row by row would get ever slower
-- as records move.
DELETE FROM session_usage
WHERE session_id IN (:from_id, :into_id);

-- name: find_merge_left :one
-- params: session_id, now_us
-- 1 if any records are left of a session that joined another one, else 0. A key that both have stays.
SELECT CASE
       WHEN EXISTS (SELECT 1 FROM sessions WHERE merged_into_id = :session_id)
         OR EXISTS (SELECT 1 FROM uploads WHERE session_id = :session_id)
         OR EXISTS (SELECT 1 FROM resumables WHERE session_id = :session_id)
         OR EXISTS (SELECT 1 FROM allowances WHERE session_id = :session_id)
         OR EXISTS (SELECT 1
                    FROM idempotency_keys
                    JOIN sessions ON sessions.id = idempotency_keys.session_id
                    WHERE idempotency_keys.session_id = :session_id
                      AND idempotency_keys.expires_at_us > :now_us
                      AND NOT EXISTS (SELECT 1
                                      FROM idempotency_keys AS theirs
                                      WHERE theirs.session_id = sessions.merged_into_id
                                        AND theirs.key_hash = idempotency_keys.key_hash))
       THEN 1
       ELSE 0
       END AS is_left;

-- name: mark_merge_whole :run
-- params: session_id, whole_at_us
-- Note that nothing is left of a merge, which is checked once more, for records about to be committed.
UPDATE merges
SET whole_at_us = :whole_at_us
WHERE session_id = :session_id;

-- name: delete_merge :run
-- params: session_id
-- Delete a merge of which nothing was left for some time: no records can appear any more.
DELETE FROM merges
WHERE session_id = :session_id;
