-- Fill a history with :rows rows, a second apart from :began on. Every (:rows / 1000)th belongs to the session :small, so that
-- has 1,000; of 100,000 rows and more, 100,000 (or all others) belong to :large; the rest to a thousandth as many others,
-- or of a million and more to :whole. They are of status deleted, because completed ones would need their files; 1 in
-- 1,000 has failed; 1 in 1,000 has the digest that begins with f00d; 1 in 500 is a needle.
INSERT INTO uploads (id, session_id, filename, filename_folded, content_type, size_bytes, sha256, status, protocol,
                     error_code, error_detail, created_at_us, completed_at_us)
WITH RECURSIVE numbers (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :rows),
     drawn (i, created_at_ms, failed, digest, name) AS (
         SELECT i, (:began + i) * 1000, (i * 104729) % 10009 < 10,
                CASE WHEN (i * 15485863) % 10037 < 10 THEN 'f00d' || printf('%060x', 0)
                     ELSE printf('%08x%056x', (i * 2654435761) & 4294967295, i) END,
                CASE WHEN (i * 7919) % 10007 < 20 THEN 'needle' ELSE 'report' END || printf(' %07d.pdf', i)
         FROM numbers)
SELECT printf('%08x-%04x-7%03x-8%03x-%012x', created_at_ms >> 16, created_at_ms & 65535, i & 4095, (i >> 12) & 4095, i),
       CASE WHEN i % (:rows / 1000) = 0 THEN :small
            WHEN :rows >= 100000 AND i % (:rows / 100000) = :rows / 100000 - 1 THEN :large
            WHEN :rows >= 1000000 THEN :whole
            ELSE printf('other-%d', i % (:rows / 1000)) END,
       name, name, 'application/pdf', 1000 + i % 100000,
       CASE WHEN failed THEN NULL ELSE digest END,
       CASE WHEN failed THEN 'failed' ELSE 'deleted' END,
       'form',
       CASE WHEN failed THEN 'incomplete_body' END,
       CASE WHEN failed THEN 'received 10 bytes, the body did not reach the declared end' END,
       created_at_ms * 1000,
       CASE WHEN failed THEN NULL ELSE created_at_ms * 1000 + 250000 END
FROM drawn;
