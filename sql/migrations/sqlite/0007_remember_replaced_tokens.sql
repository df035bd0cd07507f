-- 0007_remember_replaced_tokens.sql
-- An answer can get lost: who asks again is told the same. A token that was replaced opens its session until the new
-- one is used; a code that was used lets the same browser in once more.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER;
-- text compares by byte as it is.

-- The token in whose place this one was given out, as long as it has not been used; then that one's row goes.
ALTER TABLE session_tokens ADD COLUMN replaces_hash TEXT;

-- Codes that were used, and the token that the browser had before. Older code, which runs beside this one while
-- services are replaced, finds no code here that it could use a second time.
CREATE TABLE used_link_codes (
    code_hash      TEXT     NOT NULL,
    token_hash     TEXT     NOT NULL,
    session_id     TEXT     NOT NULL,
    expires_at_us  INTEGER  NOT NULL,
    CONSTRAINT used_link_codes_were_used_once_each PRIMARY KEY (code_hash)
) STRICT;
