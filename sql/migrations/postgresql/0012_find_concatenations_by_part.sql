-- 0012_find_concatenations_by_part.sql
-- Which concatenations name a part: found by it, counted and bounded. The triggers keep the table, whatever version of the
-- service writes the rows that it is made of.
-- Differs from sqlite: ids compare by byte (COLLATE "C") whatever the database's own locale is; a trigger calls a function.

CREATE TABLE concatenation_parts (
    part_key_hash  TEXT COLLATE "C"  NOT NULL,
    key_hash       TEXT COLLATE "C"  NOT NULL,
    CONSTRAINT concatenation_parts_stand_once PRIMARY KEY (part_key_hash, key_hash)
);

CREATE INDEX concatenation_parts_by_concatenation ON concatenation_parts (key_hash);

CREATE FUNCTION keep_concatenation_parts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM concatenation_parts
        WHERE key_hash = OLD.key_hash;
    ELSE
        INSERT INTO concatenation_parts (part_key_hash, key_hash)
        SELECT DISTINCT part, NEW.key_hash
        FROM jsonb_array_elements_text(CAST(NEW.parts AS JSONB)) AS part;
    END IF;
    RETURN NULL;
END;
$$;

CREATE TRIGGER resumables_inserted_have_parts AFTER INSERT ON resumables
FOR EACH ROW WHEN (NEW.parts IS NOT NULL) EXECUTE FUNCTION keep_concatenation_parts();

CREATE TRIGGER resumables_deleted_have_no_parts AFTER DELETE ON resumables
FOR EACH ROW WHEN (OLD.parts IS NOT NULL) EXECUTE FUNCTION keep_concatenation_parts();

INSERT INTO concatenation_parts (part_key_hash, key_hash)
SELECT DISTINCT part, resumables.key_hash
FROM resumables
CROSS JOIN LATERAL jsonb_array_elements_text(CAST(resumables.parts AS JSONB)) AS part
WHERE resumables.parts IS NOT NULL;
