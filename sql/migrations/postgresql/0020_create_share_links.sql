-- 0020_create_share_links.sql
-- URLs that give the bytes of one upload to whoever has them. Only the key's hash is kept. taken counts the bytes that
-- were sent, of an empty file the requests; allowed is how many there may be, NULL for any number.
-- Differs from sqlite: ids and hashes compare by byte (COLLATE "C"); BIGINT is 64 bits.
CREATE TABLE share_links (
    id             TEXT COLLATE "C"  NOT NULL,
    key_hash       TEXT COLLATE "C"  NOT NULL,
    upload_id      TEXT COLLATE "C"  NOT NULL,
    label          TEXT,
    created_at_us  BIGINT  NOT NULL,
    expires_at_us  BIGINT,
    max_downloads  BIGINT,
    allowed        BIGINT,
    taken          BIGINT  NOT NULL,
    CONSTRAINT share_links_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT share_links_have_one_key_each UNIQUE (key_hash),
    CONSTRAINT share_links_take_what_is_allowed CHECK (taken >= 0 AND (allowed IS NULL OR taken <= allowed))
);

CREATE INDEX share_links_by_upload ON share_links (upload_id, created_at_us, id);

CREATE INDEX share_links_by_expiry ON share_links (expires_at_us) WHERE expires_at_us IS NOT NULL;
