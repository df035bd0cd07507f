-- 0003_create_session_usage.sql
-- What a session has of its quota. Both tables are empty as long as no quota is set.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER; text compares by
-- byte as it is; a trigger holds its statements itself, and looks at one row at a time.

-- What is granted to an upload that is under way: its id is that of a request, or the key hash of an upload that comes
-- in several. holder is the process that receives it, which renews expires_at_us as long as it lives; none for an
-- upload in several requests, whose end ends it.
CREATE TABLE allowances (
    id             TEXT     NOT NULL,
    session_id     TEXT     NOT NULL,
    holder         TEXT,
    uploads        INTEGER  NOT NULL,
    size_bytes     INTEGER  NOT NULL,
    expires_at_us  INTEGER  NOT NULL,
    CONSTRAINT allowances_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT allowances_not_negative CHECK (uploads >= 0 AND size_bytes >= 0)
) STRICT;

CREATE INDEX allowances_by_session ON allowances (session_id);

-- How many uploads a session has completed or was granted, and their bytes. The triggers below keep it right,
-- whatever changes the rows that it sums up; a session without a row is not being counted.
CREATE TABLE session_usage (
    session_id  TEXT     NOT NULL,
    uploads     INTEGER  NOT NULL,
    size_bytes  INTEGER  NOT NULL,
    CONSTRAINT session_usage_has_one_row_each PRIMARY KEY (session_id)
) STRICT;

CREATE TRIGGER uploads_inserted_are_used AFTER INSERT ON uploads
WHEN NEW.status = 'completed'
BEGIN
    UPDATE session_usage
    SET uploads = uploads + 1, size_bytes = size_bytes + NEW.size_bytes
    WHERE session_id = NEW.session_id;
END;

CREATE TRIGGER uploads_updated_are_used AFTER UPDATE OF session_id, status, size_bytes ON uploads
WHEN OLD.status = 'completed' OR NEW.status = 'completed'
BEGIN
    UPDATE session_usage
    SET uploads = uploads - 1, size_bytes = size_bytes - OLD.size_bytes
    WHERE session_id = OLD.session_id AND OLD.status = 'completed';
    UPDATE session_usage
    SET uploads = uploads + 1, size_bytes = size_bytes + NEW.size_bytes
    WHERE session_id = NEW.session_id AND NEW.status = 'completed';
END;

CREATE TRIGGER allowances_inserted_are_used AFTER INSERT ON allowances
BEGIN
    UPDATE session_usage
    SET uploads = uploads + NEW.uploads, size_bytes = size_bytes + NEW.size_bytes
    WHERE session_id = NEW.session_id;
END;

CREATE TRIGGER allowances_updated_are_used AFTER UPDATE OF session_id, uploads, size_bytes ON allowances
BEGIN
    UPDATE session_usage
    SET uploads = uploads - OLD.uploads, size_bytes = size_bytes - OLD.size_bytes
    WHERE session_id = OLD.session_id;
    UPDATE session_usage
    SET uploads = uploads + NEW.uploads, size_bytes = size_bytes + NEW.size_bytes
    WHERE session_id = NEW.session_id;
END;

CREATE TRIGGER allowances_deleted_are_not_used AFTER DELETE ON allowances
BEGIN
    UPDATE session_usage
    SET uploads = uploads - OLD.uploads, size_bytes = size_bytes - OLD.size_bytes
    WHERE session_id = OLD.session_id;
END;
