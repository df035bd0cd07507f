-- 0017_index_rare_records.sql
-- A filter that few records of a long history pass finds them without a look at all others: one by a digest, of which
-- the first 16 digits tell nearly all apart, and one by a status, of which most uploads have only one: completed. So an
-- upload that succeeds in one request enters the first index, and never the second.
CREATE INDEX uploads_by_session_and_digest ON uploads (session_id, substr(sha256, 1, 16))
WHERE sha256 IS NOT NULL;

CREATE INDEX uploads_not_completed_by_status ON uploads (session_id, status, created_at_us, id)
WHERE status <> 'completed';
