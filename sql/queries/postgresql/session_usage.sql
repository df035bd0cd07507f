-- session_usage: what needs a lock, and a batch. Differs from sqlite as the query says.

-- name: lock_session_usage :many
-- params: session_ids
-- What those of a JSON array of sessions have that are being counted; it stays so until the transaction ends.
-- Differs from sqlite: other transactions run beside this one, so the rows are locked, in the order of their
-- sessions, that two batches do not wait for each other; jsonb_array_elements_text unpacks the array.
SELECT session_id, uploads, size_bytes
FROM session_usage
WHERE session_id IN (SELECT jsonb_array_elements_text(CAST(:session_ids AS JSONB)))
ORDER BY session_id
FOR UPDATE;
