-- session_usage: what each session has of its quota; the tables' own triggers count.

-- name: insert_session_usage :run
-- params: session_id
-- From now on the session is counted, beginning with what it has.
INSERT INTO session_usage (session_id, uploads, size_bytes)
SELECT CAST(:session_id AS TEXT), stored.uploads + granted.uploads, stored.size_bytes + granted.size_bytes
FROM (SELECT count(*) AS uploads, CAST(coalesce(sum(size_bytes), 0) AS BIGINT) AS size_bytes
      FROM uploads
      WHERE session_id = :session_id
        AND status = 'completed') AS stored,
     (SELECT CAST(coalesce(sum(uploads), 0) AS BIGINT) AS uploads,
             CAST(coalesce(sum(size_bytes), 0) AS BIGINT) AS size_bytes
      FROM allowances
      WHERE session_id = :session_id) AS granted
WHERE TRUE
ON CONFLICT (session_id) DO NOTHING;

-- name: find_session_usage :one
-- params: session_id
-- What a session has, if it is being counted.
SELECT uploads, size_bytes
FROM session_usage
WHERE session_id = :session_id;

-- name: has_session_usage :one
-- params: none
-- Whether any session is being counted, or anything is granted.
SELECT (SELECT count(*) FROM (SELECT 1 FROM session_usage LIMIT 1) AS counted)
     + (SELECT count(*) FROM (SELECT 1 FROM allowances LIMIT 1) AS granted) AS found;

-- name: delete_idle_session_usage :run
-- params: now_us
-- Sessions that have ended and receive nothing any more need not be counted.
DELETE FROM session_usage
WHERE NOT EXISTS (SELECT 1
                  FROM sessions
                  WHERE sessions.id = session_usage.session_id
                    AND sessions.ended_at_us IS NULL
                    AND sessions.expires_at_us > :now_us)
  AND NOT EXISTS (SELECT 1 FROM allowances WHERE allowances.session_id = session_usage.session_id);

-- name: delete_session_usage :run
-- params: none
-- No session is counted any more.
DELETE FROM session_usage;
