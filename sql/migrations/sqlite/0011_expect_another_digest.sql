-- 0011_expect_another_digest.sql
-- An upload that comes in several requests may be declared to have a SHA-512 as well: in hex, like its SHA-256.
ALTER TABLE resumables ADD COLUMN expected_sha512 TEXT;
