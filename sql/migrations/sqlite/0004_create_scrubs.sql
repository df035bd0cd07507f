-- 0004_create_scrubs.sql
-- Stored files are read again and compared with their records, pass after pass.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER;
-- text compares by byte as it is.

-- The one row says how far the pass is, or how the last one ended. Uploads up to after_id were looked at, files of
-- them, and so many were found damaged. stopped says why a pass ended early; whole_at_us is when one last did not.
CREATE TABLE scrubs (
    id           INTEGER  NOT NULL,
    began_at_us  INTEGER  NOT NULL,
    after_id     TEXT     NOT NULL,
    files        INTEGER  NOT NULL,
    found        INTEGER  NOT NULL,
    ended_at_us  INTEGER,
    stopped      TEXT,
    whole_at_us  INTEGER,
    CONSTRAINT scrubs_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT scrubs_are_one CHECK (id = 1),
    CONSTRAINT scrubs_stopped_have_ended CHECK (stopped IS NULL OR ended_at_us IS NOT NULL)
) STRICT;

-- What was complete and has an error since: few, and asked for often.
CREATE INDEX uploads_damaged_by_id ON uploads (id) WHERE error_code IS NOT NULL AND completed_at_us IS NOT NULL;
