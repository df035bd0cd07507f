-- 0009_name_holders_of_resumables.sql
-- Who holds an upload that comes in several requests is known by a random id beside the number: a fail-over that
-- loses the last commits lets a number be drawn twice. holder_seen_us is when the holder began, and who puts parts
-- together moves it as long as it is at work. Code that does not know these columns leaves them as they are, so they
-- mean something only beside a holder.
-- Differs from sqlite: ids compare by byte (COLLATE "C") whatever the database's own locale is.
ALTER TABLE resumables ADD COLUMN holder_id TEXT COLLATE "C";

ALTER TABLE resumables ADD COLUMN holder_seen_us BIGINT;
