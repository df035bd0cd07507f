-- 0001_create_sessions_and_uploads.sql
-- The first tables. Times are microseconds since 1970-01-01 UTC; sizes are bytes; ids are UUID text.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER;
-- text compares by byte as it is; an index answers what it holds without a look at the row.

-- One browser or client, or several that were linked. A session that joined another one has ended,
-- and says where its uploads went.
CREATE TABLE sessions (
    id              TEXT     NOT NULL,
    created_at_us   INTEGER  NOT NULL,
    last_seen_us    INTEGER  NOT NULL,
    expires_at_us   INTEGER  NOT NULL,
    ended_at_us     INTEGER,
    merged_into_id  TEXT,
    CONSTRAINT sessions_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT sessions_merged_have_ended CHECK (merged_into_id IS NULL OR ended_at_us IS NOT NULL),
    CONSTRAINT sessions_merge_into_others CHECK (merged_into_id <> id)
) STRICT;

CREATE INDEX sessions_live_by_expiry ON sessions (expires_at_us) WHERE ended_at_us IS NULL;

CREATE INDEX sessions_by_merged_into ON sessions (merged_into_id) WHERE merged_into_id IS NOT NULL;

-- What opens a session: the hash of the token in a cookie. One row per browser.
-- A token of a session that is not there opens nothing, so no foreign key is needed.
CREATE TABLE session_tokens (
    token_hash     TEXT     NOT NULL,
    session_id     TEXT     NOT NULL,
    created_at_us  INTEGER  NOT NULL,
    CONSTRAINT session_tokens_open_one_session_each PRIMARY KEY (token_hash)
) STRICT;

CREATE INDEX session_tokens_by_session ON session_tokens (session_id);

-- One-time codes that let a second browser into a session. Few, and gone within minutes.
CREATE TABLE link_codes (
    code_hash      TEXT     NOT NULL,
    session_id     TEXT     NOT NULL,
    expires_at_us  INTEGER  NOT NULL,
    CONSTRAINT link_codes_open_one_session_each PRIMARY KEY (code_hash)
) STRICT;

-- One file on its way in or already in. session_id is no foreign key: records outlive their session.
CREATE TABLE uploads (
    id               TEXT     NOT NULL,
    session_id       TEXT     NOT NULL,
    filename         TEXT     NOT NULL,
    filename_folded  TEXT     NOT NULL,
    content_type     TEXT,
    size_bytes       INTEGER  NOT NULL,
    sha256           TEXT,
    status           TEXT     NOT NULL,
    protocol         TEXT     NOT NULL,
    error_code       TEXT,
    error_detail     TEXT,
    created_at_us    INTEGER  NOT NULL,
    completed_at_us  INTEGER,
    CONSTRAINT uploads_have_one_id_each PRIMARY KEY (id),
    CONSTRAINT uploads_id_is_uuid_text CHECK (length(id) = 36),
    CONSTRAINT uploads_session_not_empty CHECK (session_id <> ''),
    CONSTRAINT uploads_filename_not_empty CHECK (filename <> ''),
    CONSTRAINT uploads_size_not_negative CHECK (size_bytes >= 0),
    CONSTRAINT uploads_digest_is_sha256 CHECK (length(sha256) = 64),
    CONSTRAINT uploads_status_known
        CHECK (status IN ('uploading', 'processing', 'completed', 'failed', 'expired', 'deleted')),
    CONSTRAINT uploads_protocol_known
        CHECK (protocol IN ('form', 'raw', 'tus', 'resumable')),
    CONSTRAINT uploads_completed_have_digest_and_time
        CHECK (status NOT IN ('completed', 'deleted') OR (sha256 IS NOT NULL AND completed_at_us IS NOT NULL)),
    CONSTRAINT uploads_failed_and_no_others_have_error
        CHECK ((status = 'failed') = (error_code IS NOT NULL)),
    CONSTRAINT uploads_error_has_code_and_detail
        CHECK ((error_code IS NULL) = (error_detail IS NULL)),
    CONSTRAINT uploads_created_within_calendar
        CHECK (created_at_us BETWEEN 0 AND 253402300799999999),
    CONSTRAINT uploads_completed_within_calendar_after_created
        CHECK (completed_at_us BETWEEN created_at_us AND 253402300799999999)
) STRICT;

-- Read backwards for newest first, forwards for oldest first. The name is there to be searched: to fetch every
-- row of a long history for that costs four times as much.
CREATE INDEX uploads_by_session_newest_first ON uploads (session_id, created_at_us, id, filename_folded);
