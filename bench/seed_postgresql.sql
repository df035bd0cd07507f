-- The same rows as seed_sqlite.sql makes, which says what they are.
INSERT INTO uploads (id, session_id, filename, filename_folded, content_type, size_bytes, sha256, status, protocol,
                     error_code, error_detail, created_at_us, completed_at_us)
WITH drawn (i, created_at_ms, failed, digest, name) AS (
         SELECT i, (:began + i) * 1000, (i * 104729) % 10009 < 10,
                CASE WHEN (i * 15485863) % 10037 < 10 THEN 'f00d' || repeat('0', 60)
                     ELSE lpad(to_hex((i * 2654435761) & 4294967295), 8, '0') || lpad(to_hex(i), 56, '0') END,
                CASE WHEN (i * 7919) % 10007 < 20 THEN 'needle ' ELSE 'report ' END || lpad(CAST(i AS TEXT), 7, '0') || '.pdf'
         FROM generate_series(CAST(0 AS BIGINT), :rows - 1) AS numbers (i))
SELECT lpad(to_hex(created_at_ms >> 16), 8, '0') || '-' || lpad(to_hex(created_at_ms & 65535), 4, '0')
           || '-7' || lpad(to_hex(i & 4095), 3, '0') || '-8' || lpad(to_hex((i >> 12) & 4095), 3, '0')
           || '-' || lpad(to_hex(i), 12, '0'),
       CASE WHEN i % (:rows / 1000) = 0 THEN :'small'
            WHEN :rows >= 100000 AND i % (:rows / 100000) = :rows / 100000 - 1 THEN :'large'
            WHEN :rows >= 1000000 THEN :'whole'
            ELSE 'other-' || i % (:rows / 1000) END,
       name, name, 'application/pdf', 1000 + i % 100000,
       CASE WHEN failed THEN NULL ELSE digest END,
       CASE WHEN failed THEN 'failed' ELSE 'deleted' END,
       'form',
       CASE WHEN failed THEN 'incomplete_body' END,
       CASE WHEN failed THEN 'received 10 bytes, the body did not reach the declared end' END,
       created_at_ms * 1000,
       CASE WHEN failed THEN NULL ELSE created_at_ms * 1000 + 250000 END
FROM drawn;

-- What autovacuum would do within minutes of such an insertion.
VACUUM ANALYZE uploads;
