-- 0004_create_scrubs.sql
-- Stored files are read again and compared with their records, pass after pass.
-- Differs from sqlite: ids compare by byte (COLLATE "C") whatever the database's own locale is.

-- The one row says how far the pass is, or how the last one ended. Uploads up to after_id were looked at, files of
-- them, and so many were found damaged. stopped says why a pass ended early; whole_at_us is when one last did not.
CREATE TABLE scrubs (
    id           BIGINT            NOT NULL,
    began_at_us  BIGINT            NOT NULL,
    after_id     TEXT COLLATE "C"  NOT NULL,
    files        BIGINT            NOT NULL,
    found        BIGINT            NOT NULL,
    ended_at_us  BIGINT,
    stopped      TEXT,
    whole_at_us  BIGINT,
    CONSTRAINT scrubs_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT scrubs_are_one CHECK (id = 1),
    CONSTRAINT scrubs_stopped_have_ended CHECK (stopped IS NULL OR ended_at_us IS NOT NULL)
);

-- What was complete and has an error since: few, and asked for often.
CREATE INDEX uploads_damaged_by_id ON uploads (id) WHERE error_code IS NOT NULL AND completed_at_us IS NOT NULL;
