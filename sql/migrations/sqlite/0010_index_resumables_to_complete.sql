-- 0010_index_resumables_to_complete.sql
-- What is fully received, or being put together, and has not ended: few, and looked for every other second.
CREATE INDEX resumables_to_complete ON resumables (key_hash)
WHERE ended_as IS NULL AND is_part = 0
  AND (offset_bytes = length_bytes OR (parts IS NOT NULL AND holder IS NOT NULL));
