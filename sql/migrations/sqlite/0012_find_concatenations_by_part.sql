-- 0012_find_concatenations_by_part.sql
-- Which concatenations name a part: found by it, counted and bounded. The triggers keep the table, whatever version of the
-- service writes the rows that it is made of.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type; a trigger holds its statements itself.

CREATE TABLE concatenation_parts (
    part_key_hash  TEXT  NOT NULL,
    key_hash       TEXT  NOT NULL,
    CONSTRAINT concatenation_parts_stand_once PRIMARY KEY (part_key_hash, key_hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX concatenation_parts_by_concatenation ON concatenation_parts (key_hash);

CREATE TRIGGER resumables_inserted_have_parts AFTER INSERT ON resumables
WHEN NEW.parts IS NOT NULL
BEGIN
    INSERT INTO concatenation_parts (part_key_hash, key_hash)
    SELECT DISTINCT value, NEW.key_hash
    FROM json_each(NEW.parts);
END;

CREATE TRIGGER resumables_deleted_have_no_parts AFTER DELETE ON resumables
WHEN OLD.parts IS NOT NULL
BEGIN
    DELETE FROM concatenation_parts
    WHERE key_hash = OLD.key_hash;
END;

INSERT INTO concatenation_parts (part_key_hash, key_hash)
SELECT DISTINCT part.value, resumables.key_hash
FROM resumables, json_each(resumables.parts) AS part
WHERE resumables.parts IS NOT NULL;
