-- 0016_index_failed_uploads.sql
-- The records of what never was complete: they go after a while, and are found without a look at all others.
CREATE INDEX uploads_never_complete_by_time ON uploads (created_at_us)
WHERE completed_at_us IS NULL AND (status = 'failed' OR status = 'expired');
