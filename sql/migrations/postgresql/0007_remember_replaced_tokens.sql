-- 0007_remember_replaced_tokens.sql
-- An answer can get lost: who asks again is told the same. A token that was replaced opens its session until the new
-- one is used; a code that was used lets the same browser in once more.
-- Differs from sqlite: ids and hashes compare by byte (COLLATE "C") whatever the database's own locale is.

-- The token in whose place this one was given out, as long as it has not been used; then that one's row goes.
ALTER TABLE session_tokens ADD COLUMN replaces_hash TEXT COLLATE "C";

-- Codes that were used, and the token that the browser had before. Older code, which runs beside this one while
-- services are replaced, finds no code here that it could use a second time.
CREATE TABLE used_link_codes (
    code_hash      TEXT COLLATE "C"  NOT NULL,
    token_hash     TEXT COLLATE "C"  NOT NULL,
    session_id     TEXT COLLATE "C"  NOT NULL,
    expires_at_us  BIGINT            NOT NULL,
    CONSTRAINT used_link_codes_were_used_once_each PRIMARY KEY (code_hash)
);
