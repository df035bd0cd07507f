-- share_links: the URLs that give the bytes of one upload to whoever has them.

-- name: insert_share_link :run
-- params: id, key_hash, upload_id, label?, created_at_us, expires_at_us?, max_downloads?, allowed?
-- Add a link that nobody has used.
INSERT INTO share_links (id, key_hash, upload_id, label, created_at_us, expires_at_us, max_downloads, allowed, taken)
VALUES (:id, :key_hash, :upload_id, CAST(:label AS TEXT), :created_at_us, CAST(:expires_at_us AS BIGINT),
        CAST(:max_downloads AS BIGINT), CAST(:allowed AS BIGINT), 0)
ON CONFLICT (id) DO NOTHING;

-- name: find_share_link :one
-- params: key_hash
-- The link of a key.
SELECT id, upload_id, label, created_at_us, expires_at_us, max_downloads, allowed, taken
FROM share_links
WHERE key_hash = :key_hash;

-- name: list_share_links :many
-- params: upload_id, page_size
-- The links of an upload, the newest first.
SELECT id, upload_id, label, created_at_us, expires_at_us, max_downloads, allowed, taken
FROM share_links
WHERE upload_id = :upload_id
ORDER BY created_at_us DESC, id DESC
LIMIT :page_size;

-- name: take_of_share_link :many
-- params: id, wanted, now_us
-- Take so many bytes, if the link still allows them all. Its id if they were taken.
UPDATE share_links
SET taken = taken + :wanted
WHERE id = :id
  AND (expires_at_us IS NULL OR expires_at_us > :now_us)
  AND (allowed IS NULL OR allowed - taken >= :wanted)
RETURNING id;

-- name: give_back_to_share_link :run
-- params: id, unsent
-- Give back the bytes that were taken and not sent.
UPDATE share_links
SET taken = CASE WHEN taken > :unsent THEN taken - :unsent ELSE 0 END
WHERE id = :id;

-- name: delete_share_link :many
-- params: id, upload_id
-- Delete a link of an upload. Its id if there was one.
DELETE FROM share_links
WHERE id = :id
  AND upload_id = :upload_id
RETURNING id;

-- name: delete_old_share_links :many
-- params: expired_before_us, page_size
-- Delete links that expired before then, a page at most. The ids of those deleted.
DELETE FROM share_links
WHERE id IN (SELECT old.id
             FROM share_links AS old
             WHERE old.expires_at_us < :expired_before_us
             ORDER BY old.expires_at_us
             LIMIT :page_size)
RETURNING id;
