-- 0014_create_session_totals.sql
-- What every session has, by status, is always counted: whoever asks, and every quota, looks at a few rows, however
-- many uploads there are. session_usage stays for one release, for the code before this.
-- Differs from postgresql: SQLite has triggers for rows alone, and one writer at a time, for whom order means nothing.

-- One row for each status that a session ever had an upload of, and one, 'granted', for its allowances. Sizes are whole
-- MiB and the bytes beyond them, because a sum of legal sizes may be longer than a column. The triggers below keep it
-- right.
CREATE TABLE session_totals (
    session_id         TEXT     NOT NULL,
    status             TEXT     NOT NULL,
    uploads            INTEGER  NOT NULL,
    size_mebibytes     INTEGER  NOT NULL,
    size_bytes_beyond  INTEGER  NOT NULL,
    CONSTRAINT session_totals_have_one_row_each_status PRIMARY KEY (session_id, status)
) STRICT, WITHOUT ROWID;

-- What was there before is counted once, session after session, when the service starts: those up to after_id are, and
-- in the end is_whole is 1.
CREATE TABLE session_totals_begun (
    id        INTEGER  NOT NULL,
    after_id  TEXT     NOT NULL,
    is_whole  INTEGER  NOT NULL,
    CONSTRAINT session_totals_begun_has_one_row_each PRIMARY KEY (id),
    CONSTRAINT session_totals_begun_is_one CHECK (id = 1)
) STRICT;

INSERT INTO session_totals_begun (id, after_id, is_whole) VALUES (1, '', 0);

-- Sessions that joined another one, and whose records are on their way there. whole_at_us: when nothing was left.
CREATE TABLE merges (
    session_id   TEXT     NOT NULL,
    whole_at_us  INTEGER,
    CONSTRAINT merges_have_one_row_each PRIMARY KEY (session_id)
) STRICT;

CREATE TRIGGER sessions_merged_are_moved AFTER UPDATE OF merged_into_id ON sessions
WHEN OLD.merged_into_id IS NULL AND NEW.merged_into_id IS NOT NULL
BEGIN
    INSERT INTO merges (session_id) VALUES (NEW.id)
    ON CONFLICT (session_id) DO UPDATE
    SET whole_at_us = NULL;
END;

CREATE TRIGGER uploads_inserted_are_counted AFTER INSERT ON uploads
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (NEW.session_id, NEW.status, 1, NEW.size_bytes >> 20, NEW.size_bytes & 1048575)
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

CREATE TRIGGER uploads_updated_are_counted AFTER UPDATE OF session_id, status, size_bytes ON uploads
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (OLD.session_id, OLD.status, -1, -(OLD.size_bytes >> 20), -(OLD.size_bytes & 1048575)),
           (NEW.session_id, NEW.status, 1, NEW.size_bytes >> 20, NEW.size_bytes & 1048575)
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

CREATE TRIGGER uploads_deleted_are_counted AFTER DELETE ON uploads
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (OLD.session_id, OLD.status, -1, -(OLD.size_bytes >> 20), -(OLD.size_bytes & 1048575))
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

CREATE TRIGGER allowances_inserted_are_counted AFTER INSERT ON allowances
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (NEW.session_id, 'granted', NEW.uploads, NEW.size_bytes >> 20, NEW.size_bytes & 1048575)
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

CREATE TRIGGER allowances_updated_are_counted AFTER UPDATE OF session_id, uploads, size_bytes ON allowances
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (OLD.session_id, 'granted', -OLD.uploads, -(OLD.size_bytes >> 20), -(OLD.size_bytes & 1048575)),
           (NEW.session_id, 'granted', NEW.uploads, NEW.size_bytes >> 20, NEW.size_bytes & 1048575)
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

CREATE TRIGGER allowances_deleted_are_counted AFTER DELETE ON allowances
BEGIN
    INSERT INTO session_totals (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    VALUES (OLD.session_id, 'granted', -OLD.uploads, -(OLD.size_bytes >> 20), -(OLD.size_bytes & 1048575))
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = uploads + excluded.uploads,
        size_mebibytes = size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = size_bytes_beyond + excluded.size_bytes_beyond;
END;

-- Those of the last days may have left something behind: the code before this moved all in one transaction, and what
-- was committed at the very same moment later, by its sweep.
INSERT INTO merges (session_id)
SELECT id
FROM sessions
WHERE merged_into_id IS NOT NULL
  AND ended_at_us > (CAST(strftime('%s', 'now') AS INTEGER) - 172800) * 1000000;
