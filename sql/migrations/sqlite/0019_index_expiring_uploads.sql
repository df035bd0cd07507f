-- 0019_index_expiring_uploads.sql
-- The sweep finds the uploads whose time is over without a look at all others.
CREATE INDEX uploads_completed_by_expiry ON uploads ((completed_at_us + keep_us))
WHERE keep_us IS NOT NULL AND status = 'completed';
