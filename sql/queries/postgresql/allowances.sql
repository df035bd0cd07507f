-- allowances: batches, which travel as one JSON parameter. Differs from sqlite: jsonb functions unpack them.

-- name: put_allowances :run
-- params: rows
-- Grant these, given as one JSON array of row objects; one that is there already is now as large as this.
INSERT INTO allowances (id, session_id, holder, uploads, size_bytes, expires_at_us)
SELECT r.id, r.session_id, r.holder, r.uploads, r.size_bytes, r.expires_at_us
FROM jsonb_to_recordset(CAST(:rows AS JSONB)) AS r (
    id TEXT, session_id TEXT, holder TEXT, uploads BIGINT, size_bytes BIGINT, expires_at_us BIGINT
)
ON CONFLICT (id) DO UPDATE
SET uploads = excluded.uploads, size_bytes = excluded.size_bytes;

-- name: list_allowances :many
-- params: ids
-- Those of a JSON array of ids; unknown ones are left out.
SELECT id, uploads, size_bytes
FROM allowances
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));

-- name: delete_allowances :run
-- params: ids
-- Those of a JSON array of ids go: what they were for is recorded, or will not be.
DELETE FROM allowances
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS JSONB)));
