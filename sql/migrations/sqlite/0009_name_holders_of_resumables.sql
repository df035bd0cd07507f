-- 0009_name_holders_of_resumables.sql
-- Who holds an upload that comes in several requests is known by a random id beside the number: a database that was
-- put back by a moment lets a number be drawn twice. holder_seen_us is when the holder began, and who puts parts
-- together moves it as long as it is at work. Code that does not know these columns leaves them as they are, so they
-- mean something only beside a holder.
ALTER TABLE resumables ADD COLUMN holder_id TEXT;

ALTER TABLE resumables ADD COLUMN holder_seen_us INTEGER;
