-- 0002_create_resumables.sql
-- Uploads that come in several requests: one row for each address that was given out. The record that
-- history shows stands in uploads, from the beginning; a part, which only serves a concatenation, has none.
-- Differs from sqlite: ids and hashes compare by byte (COLLATE "C") whatever the database's own locale is.

-- key_hash: the hash of the secret in the address. Bytes lie in the file upload_id.file_fence, durable up to
-- offset_bytes; digest_state is the running digest there. Every request that wants the upload raises fence;
-- holder is the fence of the one that may append now. expires_at_us moves with every append, but never past
-- last_expires_at_us; when the upload has ended, the row is kept so long for those who ask once more.
-- parts: the key hashes of what a concatenation is made of, a JSON array. session_id is no foreign key.
CREATE TABLE resumables (
    key_hash            TEXT COLLATE "C"  NOT NULL,
    upload_id           TEXT COLLATE "C"  NOT NULL,
    session_id          TEXT COLLATE "C"  NOT NULL,
    protocol            TEXT              NOT NULL,
    filename            TEXT              NOT NULL,
    content_type        TEXT              NOT NULL,
    created_at_us       BIGINT            NOT NULL,
    length_bytes        BIGINT,
    offset_bytes        BIGINT            NOT NULL,
    digest_state        TEXT,
    metadata            TEXT,
    concat              TEXT,
    is_part             BIGINT            NOT NULL,
    parts               TEXT,
    expected_sha256     TEXT,
    file_fence          BIGINT            NOT NULL,
    fence               BIGINT            NOT NULL,
    holder              BIGINT,
    expires_at_us       BIGINT            NOT NULL,
    last_expires_at_us  BIGINT            NOT NULL,
    ended_as            TEXT,
    CONSTRAINT resumables_have_one_key_each PRIMARY KEY (key_hash),
    CONSTRAINT resumables_have_one_upload_each UNIQUE (upload_id),
    CONSTRAINT resumables_key_is_hashed CHECK (length(key_hash) = 64),
    CONSTRAINT resumables_upload_is_uuid_text CHECK (length(upload_id) = 36),
    CONSTRAINT resumables_session_not_empty CHECK (session_id <> ''),
    CONSTRAINT resumables_protocol_known CHECK (protocol IN ('tus', 'resumable')),
    CONSTRAINT resumables_offset_within_length
        CHECK (offset_bytes >= 0 AND (length_bytes IS NULL OR length_bytes >= offset_bytes)),
    CONSTRAINT resumables_are_parts_or_made_of_parts CHECK (is_part IN (0, 1) AND (is_part = 0 OR parts IS NULL)),
    CONSTRAINT resumables_holder_was_let_in CHECK (holder IS NULL OR (holder >= 1 AND holder <= fence)),
    CONSTRAINT resumables_end_known CHECK (ended_as IN ('completed', 'cancelled', 'expired', 'failed')),
    CONSTRAINT resumables_ended_have_no_holder CHECK (ended_as IS NULL OR holder IS NULL)
);

CREATE INDEX resumables_by_expiry ON resumables (expires_at_us);

CREATE INDEX resumables_by_session ON resumables (session_id);

CREATE INDEX resumables_waiting_for_parts ON resumables (key_hash) WHERE parts IS NOT NULL AND ended_as IS NULL;
