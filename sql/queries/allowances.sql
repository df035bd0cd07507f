-- allowances: what is granted to uploads that are under way.

-- name: adopt_allowance :run
-- params: id, expires_at_us
-- It belongs to an upload in several requests now, and no longer to the process that asked for it.
UPDATE allowances
SET holder = NULL, expires_at_us = :expires_at_us
WHERE id = :id;

-- name: renew_allowances :run
-- params: holder, expires_at_us
-- Whoever asked for these lives, and still receives what they are for.
UPDATE allowances
SET expires_at_us = :expires_at_us
WHERE holder = :holder;

-- name: move_allowances :run
-- params: from_id, into_id
-- All of one session become another's.
UPDATE allowances
SET session_id = :into_id
WHERE session_id = :from_id;

-- name: delete_expired_allowances :run
-- params: now_us
-- Whoever asked for these is gone.
DELETE FROM allowances
WHERE expires_at_us <= :now_us;

-- name: delete_allowances_of :run
-- params: holder
-- Whoever asked for these receives nothing any more.
DELETE FROM allowances
WHERE holder = :holder;

-- name: delete_every_allowance :run
-- params: none
-- Nobody needs one any more.
DELETE FROM allowances;
