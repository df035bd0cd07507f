-- schema_migrations: what each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table is there; it is not in a new database.
-- Differs from sqlite: to_regclass finds a table as a statement would, along the search path.
SELECT CASE WHEN to_regclass('schema_migrations') IS NULL THEN 0 ELSE 1 END AS tables;

-- name: lock_migrations :one
-- params: none
-- Whether nobody else migrates until the transaction ends.
-- Differs from sqlite: transactions run side by side; the number is ours, any would do. Nobody waits for the lock in a
-- transaction, for whoever builds an index waits for transactions.
SELECT CASE WHEN pg_try_advisory_xact_lock(7245916382) THEN 1 ELSE 0 END AS locked;

-- name: lock_index_builds :one
-- params: none
-- Whether nobody else builds indexes until the session ends.
-- Differs from sqlite: it lasts longer than a transaction, and is not the lock of the migrations, who need not wait for it.
SELECT CASE WHEN pg_try_advisory_lock(7245916383) THEN 1 ELSE 0 END AS locked;

-- name: find_index :one
-- params: name
-- Whether an index is whole; one whose building was broken off is not.
-- Differs from sqlite: only here can there be such an index.
SELECT CASE WHEN indisvalid THEN 1 ELSE 0 END AS whole
FROM pg_index
WHERE indexrelid = to_regclass(:name);
