-- allowances: lists, which travel as one JSON parameter. Differs from sqlite: jsonb functions unpack them.

-- name: put_allowances :run
-- params: rows
-- Grant these, given as one JSON array of row objects; an existing grant gets the new size.
INSERT INTO allowances (id, session_id, holder, uploads, size_bytes, expires_at_us)
SELECT r.id, r.session_id, r.holder, r.uploads, r.size_bytes, r.expires_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
    id TEXT, session_id TEXT, holder TEXT, uploads BIGINT, size_bytes BIGINT, expires_at_us BIGINT
)
ON CONFLICT (id) DO UPDATE
SET uploads = excluded.uploads, size_bytes = excluded.size_bytes;

-- name: list_allowances :many
-- params: ids
-- The grants of a JSON array of ids; unknown ones are left out.
SELECT id, uploads, size_bytes
FROM allowances
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: delete_allowances :run
-- params: ids
-- Release the grants of a JSON array of ids: their uploads are recorded, or will not be. The totals that this changes
-- are locked first, also those of sessions to which the grants may just be moving; so no statement below changes totals
-- in another order.
WITH given_back AS MATERIALIZED (
    SELECT id, session_id
    FROM allowances
    WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)))
), locked AS MATERIALIZED (
    SELECT session_id
    FROM session_totals
    WHERE status = 'granted'
      AND session_id IN (SELECT session_id FROM given_back
                         UNION
                         SELECT sessions.merged_into_id
                         FROM sessions
                         WHERE sessions.id IN (SELECT session_id FROM given_back))
    ORDER BY session_id
    FOR UPDATE
)
DELETE FROM allowances
USING given_back
WHERE allowances.id = given_back.id
  AND (SELECT count(*) FROM locked) >= 0;

-- name: renew_allowances :run
-- params: holder, expires_at_us
-- Renew the grants of a process that is alive, and still receives their uploads. Differs from sqlite: rows that others
-- are changing are skipped, since locks that are taken out of order must not be waited for.
WITH held AS MATERIALIZED (
    SELECT id
    FROM allowances
    WHERE holder = :holder
    FOR UPDATE SKIP LOCKED
)
UPDATE allowances
SET expires_at_us = :expires_at_us
FROM held
WHERE allowances.id = held.id;

-- name: delete_expired_allowances :many
-- params: now_us, page_size
-- Release expired grants, whose process is gone, a page at most.
WITH given_back AS MATERIALIZED (
    SELECT id, session_id
    FROM allowances
    WHERE expires_at_us <= :now_us
    ORDER BY expires_at_us
    LIMIT :page_size
), locked AS MATERIALIZED (
    SELECT session_id
    FROM session_totals
    WHERE status = 'granted'
      AND session_id IN (SELECT session_id FROM given_back
                         UNION
                         SELECT sessions.merged_into_id
                         FROM sessions
                         WHERE sessions.id IN (SELECT session_id FROM given_back))
    ORDER BY session_id
    FOR UPDATE
)
DELETE FROM allowances
USING given_back
WHERE allowances.id = given_back.id
  AND (SELECT count(*) FROM locked) >= 0
  AND allowances.expires_at_us <= :now_us
RETURNING allowances.id;

-- name: delete_allowances_of :run
-- params: holder
-- Release all grants of a process that receives nothing any more.
WITH given_back AS MATERIALIZED (
    SELECT id, session_id
    FROM allowances
    WHERE holder = :holder
), locked AS MATERIALIZED (
    SELECT session_id
    FROM session_totals
    WHERE status = 'granted'
      AND session_id IN (SELECT session_id FROM given_back
                         UNION
                         SELECT sessions.merged_into_id
                         FROM sessions
                         WHERE sessions.id IN (SELECT session_id FROM given_back))
    ORDER BY session_id
    FOR UPDATE
)
DELETE FROM allowances
USING given_back
WHERE allowances.id = given_back.id
  AND (SELECT count(*) FROM locked) >= 0;
