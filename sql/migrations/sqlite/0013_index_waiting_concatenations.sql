-- 0013_index_waiting_concatenations.sql
-- The concatenations of a session that have not ended: counted whenever one more begins.
CREATE INDEX resumables_waiting_by_session ON resumables (session_id) WHERE parts IS NOT NULL AND ended_as IS NULL;
