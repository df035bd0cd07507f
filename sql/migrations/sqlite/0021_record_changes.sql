-- 0021_record_changes.sql
-- What happened to uploads, in the order in which it was committed: whoever has read up to an id misses nothing by
-- going on behind it. Written by triggers, so by whoever changes a record, in the same transaction. kind is 'created',
-- once and first for each upload, or the status that it has from then on; or 'joined', without an upload, when another
-- session's uploads began to come to this one, and when they all had. The first row, 'begun', is of no session: so there
-- is always a row to go on behind.
-- Differs from postgresql: one transaction writes at a time, so ids are in the order of commits by themselves.
CREATE TABLE changes (
    id          INTEGER  NOT NULL,
    upload_id   TEXT,
    session_id  TEXT     NOT NULL,
    kind        TEXT     NOT NULL,
    at_us       INTEGER  NOT NULL,
    CONSTRAINT changes_are_numbered PRIMARY KEY (id AUTOINCREMENT)
) STRICT;

INSERT INTO changes (session_id, kind, at_us)
VALUES ('', 'begun', CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER));

CREATE TRIGGER uploads_inserted_are_changes AFTER INSERT ON uploads
BEGIN
    INSERT INTO changes (upload_id, session_id, kind, at_us)
    SELECT NEW.id, NEW.session_id, kind, CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)
    FROM (SELECT 'created' AS kind UNION ALL SELECT NEW.status WHERE NEW.status <> 'uploading');
END;

CREATE TRIGGER uploads_updated_are_changes AFTER UPDATE OF status ON uploads
WHEN OLD.status <> NEW.status
BEGIN
    INSERT INTO changes (upload_id, session_id, kind, at_us)
    VALUES (NEW.id, NEW.session_id, NEW.status, CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER));
END;

CREATE TRIGGER merges_begun_are_changes AFTER INSERT ON merges
BEGIN
    INSERT INTO changes (session_id, kind, at_us)
    SELECT merged_into_id, 'joined', CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)
    FROM sessions
    WHERE id = NEW.session_id AND merged_into_id IS NOT NULL;
END;

CREATE TRIGGER merges_whole_are_changes AFTER UPDATE OF whole_at_us ON merges
WHEN OLD.whole_at_us IS NULL AND NEW.whole_at_us IS NOT NULL
BEGIN
    INSERT INTO changes (session_id, kind, at_us)
    SELECT merged_into_id, 'joined', CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)
    FROM sessions
    WHERE id = NEW.session_id AND merged_into_id IS NOT NULL;
END;
