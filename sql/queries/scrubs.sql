-- scrubs: one row, the progress of reading all stored files again.

-- name: save_scrub :run
-- params: began_at_us, after_id, files, found, ended_at_us?, stopped?, whole_at_us?
-- Save the scrub's progress.
INSERT INTO scrubs (id, began_at_us, after_id, files, found, ended_at_us, stopped, whole_at_us)
VALUES (1, :began_at_us, :after_id, :files, :found,
        CAST(:ended_at_us AS BIGINT), CAST(:stopped AS TEXT), CAST(:whole_at_us AS BIGINT))
ON CONFLICT (id) DO UPDATE
SET began_at_us = excluded.began_at_us, after_id = excluded.after_id, files = excluded.files, found = excluded.found,
    ended_at_us = excluded.ended_at_us, stopped = excluded.stopped, whole_at_us = excluded.whole_at_us;

-- name: find_scrub :one
-- params: none
-- The scrub's progress. No row: it never began.
SELECT began_at_us, after_id, files, found, ended_at_us, stopped, whole_at_us
FROM scrubs
WHERE id = 1;
