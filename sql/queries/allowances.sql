-- allowances: what is granted to uploads that are under way.

-- name: adopt_allowance :run
-- params: id, expires_at_us
-- It belongs to an upload in several requests now, and no longer to the process that asked for it.
UPDATE allowances
SET holder = NULL, expires_at_us = :expires_at_us
WHERE id = :id;
