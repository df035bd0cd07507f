-- session_totals: the totals of each session, by status, counted by the tables' own triggers. Locks are in the
-- dialects' folders.

-- name: list_session_totals :many
-- params: session_id
-- The totals of a session, by status, and its granted quota. Rows that are zero are left out.
SELECT status, uploads, size_mebibytes, size_bytes_beyond
FROM session_totals
WHERE session_id = :session_id
  AND (uploads <> 0 OR size_mebibytes <> 0 OR size_bytes_beyond <> 0)
ORDER BY status;

-- name: list_miscounted_totals :many
-- params: after_id, until_id
-- The sessions behind after_id, up to until_id, whose totals do not agree with their uploads.
SELECT DISTINCT session_id
FROM (SELECT session_id, status
      FROM (SELECT session_id, status, 1 AS uploads, size_bytes >> 20 AS mebibytes, size_bytes & 1048575 AS beyond
            FROM uploads
            WHERE session_id > :after_id
              AND session_id <= :until_id
            UNION ALL
            SELECT session_id, 'granted' AS status, uploads, size_bytes >> 20, size_bytes & 1048575
            FROM allowances
            WHERE session_id > :after_id
              AND session_id <= :until_id
            UNION ALL
            SELECT session_id, status, -uploads, -size_mebibytes, -size_bytes_beyond
            FROM session_totals
            WHERE session_id > :after_id
              AND session_id <= :until_id) AS counted
      GROUP BY session_id, status
      HAVING sum(uploads) <> 0 OR sum(mebibytes) <> 0 OR sum(beyond) <> 0) AS wrong
ORDER BY session_id;

-- name: find_totals_page :one
-- params: after_id, page_size
-- The end of a page of sessions behind after_id that have at least so many uploads, and so many totals. No row: both
-- have fewer left.
SELECT min(session_id) AS until_id
FROM (SELECT max(session_id) AS session_id
      FROM (SELECT session_id
            FROM uploads
            WHERE session_id > :after_id
            ORDER BY session_id
            LIMIT :page_size) AS some_uploads
      HAVING count(*) = :page_size
      UNION ALL
      SELECT max(session_id) AS session_id
      FROM (SELECT session_id
            FROM session_totals
            WHERE session_id > :after_id
            ORDER BY session_id
            LIMIT :page_size) AS some_totals
      HAVING count(*) = :page_size) AS ends
HAVING min(session_id) IS NOT NULL;

-- name: find_totals_begun :one
-- params: none
-- The progress of counting the sessions that are older than the totals.
SELECT after_id, is_whole
FROM session_totals_begun;

-- name: save_totals_begun :run
-- params: after_id, is_whole
-- Save the progress of counting the sessions that are older than the totals.
UPDATE session_totals_begun
SET after_id = :after_id, is_whole = :is_whole;

-- name: delete_zero_totals :run
-- params: after_id, until_id
-- Delete the totals of sessions that do not exist, from behind after_id up to until_id, if they are zero.
DELETE FROM session_totals
WHERE session_id > :after_id
  AND session_id <= :until_id
  AND uploads = 0
  AND size_mebibytes = 0
  AND size_bytes_beyond = 0
  AND (SELECT sessions.id FROM sessions WHERE sessions.id = session_totals.session_id) IS NULL;
