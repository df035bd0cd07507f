-- schema_migrations: queries that each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table exists. In a new database it does not, though another owner's table may have its name.
-- Differs from postgresql: a pragma lists the columns.
SELECT count(*) AS tables
FROM pragma_table_info('schema_migrations')
WHERE name = 'checksum';

-- name: lock_migrations :one
-- params: none
-- Try to lock the migrations until the transaction ends.
-- Differs from postgresql: a transaction that writes is alone already; there is nothing left to lock.
SELECT 1 AS locked;

-- name: lock_index_builds :one
-- params: none
-- Try to lock the building of indexes.
-- Differs from postgresql: indexes are created like everything else, by the one writer.
SELECT 1 AS locked;

-- name: find_index :one
-- params: name
-- Whether an index is valid.
-- Differs from postgresql: it always is.
SELECT 1 AS whole
FROM sqlite_schema
WHERE type = 'index'
  AND name = :name;

-- name: find_place :one
-- params: schema?
-- The place where new tables would be created, and whether they may.
-- Differs from postgresql: there is one place, and any process that can write to the file may do anything.
SELECT '' AS role,
       'main' AS place,
       '' AS path,
       TRUE AS creates_tables,
       CAST(:schema AS TEXT) IS NULL AS is_there,
       TRUE AS creates_schemas;

-- name: list_tables :many
-- params: names
-- Those of the named tables that exist.
-- Differs from postgresql: they belong to every process that can write to the file.
SELECT found.name AS name,
       'main' AS place,
       '' AS owner,
       TRUE AS is_owned,
       TRUE AS is_usable
FROM json_each(:names) AS named
JOIN sqlite_schema AS found ON found.name = named.value
WHERE found.type IN ('table', 'view');
