-- allowances: quota granted to uploads that are under way.

-- name: adopt_allowance :run
-- params: id, expires_at_us
-- Hand a grant over to a resumable upload, so that it outlives the process that requested it.
UPDATE allowances
SET holder = NULL, expires_at_us = :expires_at_us
WHERE id = :id;
