-- 0003_create_session_usage.sql
-- What a session has of its quota. Both tables are empty as long as no quota is set.
-- Differs from sqlite: ids compare by byte (COLLATE "C") whatever the database's own locale is; a trigger calls a
-- function, and the one for new uploads, the busiest, looks at all rows of a statement together.

-- What is granted to an upload that is under way: its id is that of a request, or the key hash of an upload that comes
-- in several. holder is the process that receives it, which renews expires_at_us as long as it lives; none for an
-- upload in several requests, whose end ends it.
CREATE TABLE allowances (
    id             TEXT COLLATE "C"  NOT NULL,
    session_id     TEXT COLLATE "C"  NOT NULL,
    holder         TEXT COLLATE "C",
    uploads        BIGINT            NOT NULL,
    size_bytes     BIGINT            NOT NULL,
    expires_at_us  BIGINT            NOT NULL,
    CONSTRAINT allowances_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT allowances_not_negative CHECK (uploads >= 0 AND size_bytes >= 0)
);

CREATE INDEX allowances_by_session ON allowances (session_id);

-- How many uploads a session has completed or was granted, and their bytes. The triggers below keep it right,
-- whatever changes the rows that it sums up; a session without a row is not being counted.
CREATE TABLE session_usage (
    session_id  TEXT COLLATE "C"  NOT NULL,
    uploads     BIGINT            NOT NULL,
    size_bytes  BIGINT            NOT NULL,
    CONSTRAINT session_usage_has_one_row_each PRIMARY KEY (session_id)
);

CREATE FUNCTION count_inserted_uploads() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    UPDATE session_usage
    SET uploads = session_usage.uploads + added.uploads, size_bytes = session_usage.size_bytes + added.size_bytes
    FROM (SELECT session_id, count(*) AS uploads, sum(size_bytes) AS size_bytes
          FROM inserted
          WHERE status = 'completed'
          GROUP BY session_id) AS added
    WHERE session_usage.session_id = added.session_id;
    RETURN NULL;
END;
$$;

CREATE TRIGGER uploads_inserted_are_used AFTER INSERT ON uploads
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION count_inserted_uploads();

CREATE FUNCTION count_updated_upload() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    UPDATE session_usage
    SET uploads = uploads - 1, size_bytes = size_bytes - OLD.size_bytes
    WHERE session_id = OLD.session_id AND OLD.status = 'completed';
    UPDATE session_usage
    SET uploads = uploads + 1, size_bytes = size_bytes + NEW.size_bytes
    WHERE session_id = NEW.session_id AND NEW.status = 'completed';
    RETURN NULL;
END;
$$;

CREATE TRIGGER uploads_updated_are_used AFTER UPDATE OF session_id, status, size_bytes ON uploads
FOR EACH ROW WHEN (OLD.status = 'completed' OR NEW.status = 'completed') EXECUTE FUNCTION count_updated_upload();

CREATE FUNCTION count_allowance() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE session_usage
        SET uploads = uploads - OLD.uploads, size_bytes = size_bytes - OLD.size_bytes
        WHERE session_id = OLD.session_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE session_usage
        SET uploads = uploads + NEW.uploads, size_bytes = size_bytes + NEW.size_bytes
        WHERE session_id = NEW.session_id;
    END IF;
    RETURN NULL;
END;
$$;

CREATE TRIGGER allowances_inserted_are_used AFTER INSERT ON allowances
FOR EACH ROW EXECUTE FUNCTION count_allowance();

CREATE TRIGGER allowances_updated_are_used AFTER UPDATE OF session_id, uploads, size_bytes ON allowances
FOR EACH ROW EXECUTE FUNCTION count_allowance();

CREATE TRIGGER allowances_deleted_are_not_used AFTER DELETE ON allowances
FOR EACH ROW EXECUTE FUNCTION count_allowance();
