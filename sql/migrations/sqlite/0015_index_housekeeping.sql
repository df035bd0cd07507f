-- 0015_index_housekeeping.sql
-- What is looked for now and then is found without a look at everything else: the sessions that were seen last, codes
-- and allowances whose time is over, what one process was granted.

CREATE INDEX sessions_by_last_seen ON sessions (last_seen_us, id);

CREATE INDEX link_codes_by_session ON link_codes (session_id);

CREATE INDEX link_codes_by_expiry ON link_codes (expires_at_us);

CREATE INDEX used_link_codes_by_expiry ON used_link_codes (expires_at_us);

CREATE INDEX allowances_by_expiry ON allowances (expires_at_us);

CREATE INDEX allowances_held ON allowances (holder) WHERE holder IS NOT NULL;
