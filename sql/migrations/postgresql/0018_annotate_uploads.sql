-- 0018_annotate_uploads.sql
-- What a client adds to an upload: pairs of texts, as a JSON object without spaces; the path of its file in a folder, of
-- which path_folded is what is compared; and how long its bytes are kept once it is completed. NULL where it adds none.
-- Differs from sqlite: BIGINT is 64 bits; there INTEGER is.
ALTER TABLE uploads ADD COLUMN metadata TEXT;

ALTER TABLE uploads ADD COLUMN path TEXT;

ALTER TABLE uploads ADD COLUMN path_folded TEXT;

ALTER TABLE uploads ADD COLUMN keep_us BIGINT;
