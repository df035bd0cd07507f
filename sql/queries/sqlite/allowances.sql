-- allowances: lists, which travel as one JSON parameter. Differs from postgresql: json_each unpacks them.

-- name: put_allowances :run
-- params: rows
-- Grant these, given as one JSON array of row objects; an existing grant gets the new size. The WHERE keeps SQLite from
-- reading ON CONFLICT as part of a join.
INSERT INTO allowances (id, session_id, holder, uploads, size_bytes, expires_at_us)
SELECT value ->> 'id', value ->> 'session_id', value ->> 'holder', value ->> 'uploads', value ->> 'size_bytes',
       value ->> 'expires_at_us'
FROM json_each(:rows)
WHERE TRUE
ON CONFLICT (id) DO UPDATE
SET uploads = excluded.uploads, size_bytes = excluded.size_bytes;

-- name: list_allowances :many
-- params: ids
-- The grants of a JSON array of ids; unknown ones are left out.
SELECT id, uploads, size_bytes
FROM allowances
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: delete_allowances :run
-- params: ids
-- Release the grants of a JSON array of ids: their uploads are recorded, or will not be.
DELETE FROM allowances
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: renew_allowances :run
-- params: holder, expires_at_us
-- Renew the grants of a process that is alive, and still receives their uploads. Differs from postgresql: nobody else
-- changes them meanwhile; nor below.
UPDATE allowances
SET expires_at_us = :expires_at_us
WHERE holder = :holder;

-- name: delete_expired_allowances :many
-- params: now_us, page_size
-- Release expired grants, whose process is gone, a page at most.
DELETE FROM allowances
WHERE id IN (SELECT expired.id
             FROM allowances AS expired
             WHERE expired.expires_at_us <= :now_us
             ORDER BY expired.expires_at_us
             LIMIT :page_size)
RETURNING id;

-- name: delete_allowances_of :run
-- params: holder
-- Release all grants of a process that receives nothing any more.
DELETE FROM allowances
WHERE holder = :holder;
