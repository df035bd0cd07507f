-- link_codes: one-time codes that let a second browser into a session.

-- name: insert_link_code :run
-- params: code_hash, session_id, expires_at_us
-- Add a code that opens a session once, until it expires.
INSERT INTO link_codes (code_hash, session_id, expires_at_us)
VALUES (:code_hash, :session_id, :expires_at_us);

-- name: find_link_code :one
-- params: code_hash, now_us
-- The live session that a code opens. No row: none.
SELECT sessions.id AS session_id
FROM link_codes
JOIN sessions ON sessions.id = link_codes.session_id
WHERE link_codes.code_hash = :code_hash
  AND link_codes.expires_at_us > :now_us
  AND sessions.ended_at_us IS NULL
  AND sessions.expires_at_us > :now_us;

-- name: move_link_codes :run
-- params: from_id, into_id
-- Let the codes of one session open another.
UPDATE link_codes
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: take_link_code :one
-- params: code_hash, now_us
-- Use a code up; the live session that it opens. No row: it opens none.
DELETE FROM link_codes
WHERE code_hash = :code_hash
  AND expires_at_us > :now_us
  AND EXISTS (SELECT 1
              FROM sessions
              WHERE sessions.id = link_codes.session_id
                AND sessions.ended_at_us IS NULL
                AND sessions.expires_at_us > :now_us)
RETURNING session_id, expires_at_us;

-- name: delete_link_codes_of_session :run
-- params: session_id
-- Delete all codes of a session.
DELETE FROM link_codes
WHERE session_id = :session_id;

-- name: delete_dead_link_codes :many
-- params: now_us, page_size
-- Delete expired codes, a page at most; those of a session that ends are deleted with it.
DELETE FROM link_codes
WHERE code_hash IN (SELECT dead.code_hash
                    FROM link_codes AS dead
                    WHERE dead.expires_at_us <= :now_us
                    ORDER BY dead.expires_at_us
                    LIMIT :page_size)
RETURNING code_hash;
