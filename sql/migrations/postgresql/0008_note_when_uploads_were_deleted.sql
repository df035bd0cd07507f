-- 0008_note_when_uploads_were_deleted.sql
-- An answer can get lost: who deletes a file once more within a day is told of success again.
-- Differs from sqlite: BIGINT is 64 bits; there INTEGER is.

-- When the bytes went. Of uploads that older code deleted it is not known.
ALTER TABLE uploads ADD COLUMN deleted_at_us BIGINT;
