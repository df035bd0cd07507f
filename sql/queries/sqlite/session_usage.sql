-- session_usage: what needs a lock, and a batch. Differs from postgresql as the query says.

-- name: lock_session_usage :many
-- params: session_ids
-- What those of a JSON array of sessions have that are being counted; it stays so until the transaction ends.
-- Differs from postgresql: the transaction has the whole database for itself already; json_each unpacks the array.
SELECT session_id, uploads, size_bytes
FROM session_usage
WHERE session_id IN (SELECT value FROM json_each(:session_ids));
