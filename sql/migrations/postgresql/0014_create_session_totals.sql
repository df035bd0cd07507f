-- 0014_create_session_totals.sql
-- What every session has, by status, is always counted: whoever asks, and every quota, looks at a few rows, however
-- many uploads there are. session_usage stays for one release, for the code before this.
-- Differs from sqlite: ids compare by byte (COLLATE "C") whatever the database's own locale is; a trigger calls a
-- function, which looks at all rows of a statement together and changes the sums in their order, so that two
-- statements never wait for each other.

-- One row for each status that a session ever had an upload of, and one, 'granted', for its allowances. Sizes are whole
-- MiB and the bytes beyond them, because a sum of legal sizes may be longer than a column. The triggers below keep it
-- right; they come in the alphabet before those of session_usage, and so does whoever waits for a sum.
CREATE TABLE session_totals (
    session_id         TEXT COLLATE "C"  NOT NULL,
    status             TEXT COLLATE "C"  NOT NULL,
    uploads            BIGINT            NOT NULL,
    size_mebibytes     BIGINT            NOT NULL,
    size_bytes_beyond  BIGINT            NOT NULL,
    CONSTRAINT session_totals_have_one_row_each_status PRIMARY KEY (session_id, status)
) WITH (fillfactor = 70);

-- What was there before is counted once, session after session, when the service starts: those up to after_id are, and
-- in the end is_whole is 1.
CREATE TABLE session_totals_begun (
    id        BIGINT            NOT NULL,
    after_id  TEXT COLLATE "C"  NOT NULL,
    is_whole  BIGINT            NOT NULL,
    CONSTRAINT session_totals_begun_has_one_row_each PRIMARY KEY (id),
    CONSTRAINT session_totals_begun_is_one CHECK (id = 1)
);

INSERT INTO session_totals_begun (id, after_id, is_whole) VALUES (1, '', 0);

-- Sessions that joined another one, and whose records are on their way there. whole_at_us: when nothing was left.
CREATE TABLE merges (
    session_id   TEXT COLLATE "C"  NOT NULL,
    whole_at_us  BIGINT,
    CONSTRAINT merges_have_one_row_each PRIMARY KEY (session_id)
);

CREATE FUNCTION total_inserted_uploads() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, status, count(*), sum(size_bytes >> 20), sum(size_bytes & 1048575)
    FROM after_it
    GROUP BY session_id, status
    ORDER BY session_id, status
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

CREATE FUNCTION total_updated_uploads() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, status, sum(number), sum(number * (size_bytes >> 20)), sum(number * (size_bytes & 1048575))
    FROM (SELECT session_id, status, 1 AS number, size_bytes FROM after_it
          UNION ALL
          SELECT session_id, status, -1 AS number, size_bytes FROM before_it) AS changed
    GROUP BY session_id, status
    HAVING sum(number) <> 0 OR sum(number * (size_bytes >> 20)) <> 0 OR sum(number * (size_bytes & 1048575)) <> 0
    ORDER BY session_id, status
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

CREATE FUNCTION total_deleted_uploads() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, status, -count(*), -sum(size_bytes >> 20), -sum(size_bytes & 1048575)
    FROM before_it
    GROUP BY session_id, status
    ORDER BY session_id, status
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

CREATE FUNCTION total_inserted_allowances() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, 'granted', sum(uploads), sum(size_bytes >> 20), sum(size_bytes & 1048575)
    FROM after_it
    GROUP BY session_id
    ORDER BY session_id
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

-- Most changes only say that an allowance is still needed, and change no sum.
CREATE FUNCTION total_updated_allowances() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, 'granted', sum(number * uploads), sum(number * (size_bytes >> 20)),
           sum(number * (size_bytes & 1048575))
    FROM (SELECT session_id, 1 AS number, uploads, size_bytes FROM after_it
          UNION ALL
          SELECT session_id, -1 AS number, uploads, size_bytes FROM before_it) AS changed
    GROUP BY session_id
    HAVING sum(number * uploads) <> 0 OR sum(number * (size_bytes >> 20)) <> 0
        OR sum(number * (size_bytes & 1048575)) <> 0
    ORDER BY session_id
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

CREATE FUNCTION total_deleted_allowances() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO session_totals AS total (session_id, status, uploads, size_mebibytes, size_bytes_beyond)
    SELECT session_id, 'granted', -sum(uploads), -sum(size_bytes >> 20), -sum(size_bytes & 1048575)
    FROM before_it
    GROUP BY session_id
    ORDER BY session_id
    ON CONFLICT (session_id, status) DO UPDATE
    SET uploads = total.uploads + excluded.uploads,
        size_mebibytes = total.size_mebibytes + excluded.size_mebibytes,
        size_bytes_beyond = total.size_bytes_beyond + excluded.size_bytes_beyond;
    RETURN NULL;
END;
$$;

CREATE FUNCTION note_merge() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO merges (session_id) VALUES (NEW.id)
    ON CONFLICT (session_id) DO UPDATE
    SET whole_at_us = NULL;
    RETURN NULL;
END;
$$;

-- The tables in the order in which everybody locks, for as long as it takes to name some triggers.
LOCK TABLE sessions, uploads, allowances IN SHARE ROW EXCLUSIVE MODE;

CREATE TRIGGER sessions_merged_are_moved AFTER UPDATE OF merged_into_id ON sessions
FOR EACH ROW WHEN (OLD.merged_into_id IS NULL AND NEW.merged_into_id IS NOT NULL) EXECUTE FUNCTION note_merge();

CREATE TRIGGER uploads_inserted_are_counted AFTER INSERT ON uploads
REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION total_inserted_uploads();

CREATE TRIGGER uploads_updated_are_counted AFTER UPDATE ON uploads
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION total_updated_uploads();

CREATE TRIGGER uploads_deleted_are_counted AFTER DELETE ON uploads
REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION total_deleted_uploads();

CREATE TRIGGER allowances_inserted_are_counted AFTER INSERT ON allowances
REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION total_inserted_allowances();

CREATE TRIGGER allowances_updated_are_counted AFTER UPDATE ON allowances
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION total_updated_allowances();

CREATE TRIGGER allowances_deleted_are_counted AFTER DELETE ON allowances
REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION total_deleted_allowances();

-- Those of the last days may have left something behind: the code before this moved all in one transaction, and what
-- was committed at the very same moment later, by its sweep.
INSERT INTO merges (session_id)
SELECT id
FROM sessions
WHERE merged_into_id IS NOT NULL
  AND ended_at_us > (extract(epoch FROM now()) - 172800) * 1000000;
