-- schema_migrations: what each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table is there; it is not in a new database.
-- Differs from postgresql: SQLite keeps its tables in sqlite_schema.
SELECT count(*) AS tables
FROM sqlite_schema
WHERE type = 'table'
  AND name = 'schema_migrations';

-- name: lock_migrations :one
-- params: none
-- Whether nobody else migrates until the transaction ends.
-- Differs from postgresql: a transaction that writes is alone already; there is nothing left to lock.
SELECT 1 AS locked;

-- name: lock_index_builds :one
-- params: none
-- Whether nobody else builds indexes.
-- Differs from postgresql: indexes are made like everything else, by whoever writes.
SELECT 1 AS locked;

-- name: find_index :one
-- params: name
-- Whether an index is whole.
-- Differs from postgresql: it always is.
SELECT 1 AS whole
FROM sqlite_schema
WHERE type = 'index'
  AND name = :name;
