-- 0006_index_filenames.sql
-- The name is there to be searched, as it always was in sqlite: to fetch every row of a long history for that costs
-- ten times as much. Making the index anew takes a second or two for a million uploads, and new ones wait for it.

DROP INDEX uploads_by_session_newest_first;

CREATE INDEX uploads_by_session_newest_first ON uploads (session_id, created_at_us, id, filename_folded);
