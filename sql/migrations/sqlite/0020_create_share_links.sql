-- 0020_create_share_links.sql
-- URLs that give the bytes of one upload to whoever has them. Only the key's hash is kept. taken counts the bytes that
-- were sent, of an empty file the requests; allowed is how many there may be, NULL for any number.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER.
CREATE TABLE share_links (
    id             TEXT      NOT NULL,
    key_hash       TEXT      NOT NULL,
    upload_id      TEXT      NOT NULL,
    label          TEXT,
    created_at_us  INTEGER  NOT NULL,
    expires_at_us  INTEGER,
    max_downloads  INTEGER,
    allowed        INTEGER,
    taken          INTEGER  NOT NULL,
    CONSTRAINT share_links_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT share_links_have_one_key_each UNIQUE (key_hash),
    CONSTRAINT share_links_take_what_is_allowed CHECK (taken >= 0 AND (allowed IS NULL OR taken <= allowed))
) STRICT;

CREATE INDEX share_links_by_upload ON share_links (upload_id, created_at_us, id);

CREATE INDEX share_links_by_expiry ON share_links (expires_at_us) WHERE expires_at_us IS NOT NULL;
