-- session_totals: queries with locks. Differs from sqlite: other transactions run beside this one, so rows are locked,
-- in the order of sessions and statuses in which the triggers change them, granted quota last; jsonb functions unpack
-- arrays.

-- name: lock_session_totals :many
-- params: session_ids
-- Lock the totals of a JSON array of sessions, or of the sessions that they joined, until the transaction ends; the
-- amounts that count for a quota.
WITH asked AS MATERIALIZED (
    SELECT r.id,
           coalesce((SELECT merged_into_id FROM sessions WHERE sessions.id = r.id FOR KEY SHARE), r.id) AS owner_id
    FROM jsonb_array_elements_text(CAST(:session_ids AS JSONB)) AS r (id)
), locked AS (
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT DISTINCT asked.owner_id, kept.status, 0, 0, 0
    FROM asked
    CROSS JOIN (VALUES ('completed'), ('granted')) AS kept (status)
    ORDER BY 2, 1
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads
    RETURNING session_id, status, uploads, size_mebibytes, size_bytes_beyond
)
SELECT asked.id AS asked_id, locked.session_id, locked.status, locked.uploads, locked.size_mebibytes,
       locked.size_bytes_beyond
FROM asked
JOIN locked ON locked.session_id = asked.owner_id;

-- name: reset_session_totals :many
-- params: after_id, until_id
-- Set the totals of the sessions behind after_id, up to until_id, to zero, and lock them until the transaction ends: of
-- all sessions that have uploads, allowances or totals.
INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
SELECT session_id, status, 0, 0, 0
FROM (SELECT session_id, status FROM uploads WHERE session_id > :after_id AND session_id <= :until_id
      UNION
      SELECT session_id, 'granted' FROM allowances WHERE session_id > :after_id AND session_id <= :until_id
      UNION
      SELECT session_id, status FROM session_totals WHERE session_id > :after_id AND session_id <= :until_id) AS there
ORDER BY status = 'granted', session_id, status
ON CONFLICT (session_id, status) DO UPDATE
SET uploads = 0, size_mebibytes = 0, size_bytes_beyond = 0
RETURNING session_id, status;

-- name: count_session_totals :run
-- params: after_id, until_id, locked
-- Count the totals of a JSON array of rows that were reset, from the uploads, which cannot change now.
UPDATE session_totals
SET uploads = counted.uploads, size_mebibytes = counted.mebibytes, size_bytes_beyond = counted.beyond
FROM (SELECT session_id, status, count(*) AS uploads, sum(size_bytes >> 20) AS mebibytes,
             sum(size_bytes & 1048575) AS beyond
      FROM uploads
      WHERE session_id > :after_id
        AND session_id <= :until_id
      GROUP BY session_id, status
      UNION ALL
      SELECT session_id, 'granted', sum(uploads), sum(size_bytes >> 20), sum(size_bytes & 1048575)
      FROM allowances
      WHERE session_id > :after_id
        AND session_id <= :until_id
      GROUP BY session_id) AS counted,
     jsonb_to_recordset(CAST(:locked AS JSONB)) AS r (session_id TEXT COLLATE "C", status TEXT COLLATE "C")
WHERE session_totals.session_id = counted.session_id
  AND session_totals.status = counted.status
  AND r.session_id = counted.session_id
  AND r.status = counted.status;

-- name: lock_totals_begun :one
-- params: none
-- The progress of counting the sessions that are older than the totals, locked until the transaction ends.
SELECT after_id, is_whole
FROM session_totals_begun
FOR UPDATE;
