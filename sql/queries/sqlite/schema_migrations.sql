-- schema_migrations: what each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table is there; it is not in a new database.
-- Differs from postgresql: SQLite keeps its tables in sqlite_schema.
SELECT count(*) AS tables
FROM sqlite_schema
WHERE type = 'table'
  AND name = 'schema_migrations';

-- name: lock_migrations :many
-- params: none
-- Until the transaction ends nobody else migrates.
-- Differs from postgresql: a transaction that writes is alone already; there is nothing left to lock.
SELECT 1 AS locked;
