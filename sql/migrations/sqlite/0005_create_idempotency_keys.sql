-- 0005_create_idempotency_keys.sql
-- Requests that carry an Idempotency-Key: one row for each key of a session, while the first request under it is at
-- work, and after that as long as its answer is remembered.
-- Differs from postgresql: STRICT makes SQLite hold a column to its type, and knows only INTEGER;
-- text compares by byte as it is.

-- key_hash: the hash of what the client chose. claim_id: the one request that may commit under this key, a new id for
-- each that takes the key. protocol to boundary_bytes: what that request said of its body before the body came; of a
-- form there is no filename, and how long its boundary is, which is drawn anew for each request.
-- answer: the uploads that landed, as a JSON array of their rows, in the order of the form; NULL while the request is
-- at work. Past expires_at_us the row means nothing: the claim was left by somebody who died, or the answer is old.
CREATE TABLE idempotency_keys (
    session_id      TEXT     NOT NULL,
    key_hash        TEXT     NOT NULL,
    claim_id        TEXT     NOT NULL,
    protocol        TEXT     NOT NULL,
    filename        TEXT,
    content_type    TEXT     NOT NULL,
    length_bytes    INTEGER,
    boundary_bytes  INTEGER  NOT NULL,
    answer          TEXT,
    expires_at_us   INTEGER  NOT NULL,
    CONSTRAINT idempotency_keys_have_one_row_each_in_a_session PRIMARY KEY (session_id, key_hash),
    CONSTRAINT idempotency_keys_have_one_claim_each UNIQUE (claim_id),
    CONSTRAINT idempotency_keys_are_hashed CHECK (length(key_hash) = 64),
    CONSTRAINT idempotency_keys_session_not_empty CHECK (session_id <> ''),
    CONSTRAINT idempotency_keys_protocol_known CHECK (protocol IN ('form', 'raw')),
    CONSTRAINT idempotency_keys_lengths_not_negative CHECK (length_bytes >= 0 AND boundary_bytes >= 0)
) STRICT;

CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at_us);
