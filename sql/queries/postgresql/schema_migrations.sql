-- schema_migrations: what each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table is there; it is not in a new database.
-- Differs from sqlite: to_regclass finds a table as a statement would, along the search path.
SELECT CASE WHEN to_regclass('schema_migrations') IS NULL THEN 0 ELSE 1 END AS tables;

-- name: lock_migrations :many
-- params: none
-- Until the transaction ends nobody else migrates.
-- Differs from sqlite: transactions run side by side; the number is ours, any would do.
SELECT 1 AS locked
FROM pg_advisory_xact_lock(7245916382);
