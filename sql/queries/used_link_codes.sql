-- used_link_codes: used codes, until their time would have been over, for requests that are repeated.

-- name: insert_used_link_code :run
-- params: code_hash, token_hash, session_id, expires_at_us
-- Note that the owner of this token has used this code.
INSERT INTO used_link_codes (code_hash, token_hash, session_id, expires_at_us)
VALUES (:code_hash, :token_hash, :session_id, :expires_at_us);

-- name: find_used_link_code :one
-- params: code_hash, now_us
-- The token by which a code was used, and the live session that it led to, also through later merges.
SELECT used_link_codes.token_hash, sessions.id AS session_id
FROM used_link_codes
JOIN sessions AS joined ON joined.id = used_link_codes.session_id
JOIN sessions ON sessions.id = coalesce(joined.merged_into_id, joined.id)
WHERE used_link_codes.code_hash = :code_hash
  AND used_link_codes.expires_at_us > :now_us
  AND sessions.ended_at_us IS NULL
  AND sessions.expires_at_us > :now_us;

-- name: delete_old_used_link_codes :many
-- params: now_us, page_size
-- Delete used codes whose time is over, a page at most.
DELETE FROM used_link_codes
WHERE code_hash IN (SELECT old.code_hash
                    FROM used_link_codes AS old
                    WHERE old.expires_at_us <= :now_us
                    ORDER BY old.expires_at_us
                    LIMIT :page_size)
RETURNING code_hash;
