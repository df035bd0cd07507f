-- schema_migrations: queries that each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table exists. In a new database it does not, though another owner's table may have its name.
-- Differs from sqlite: to_regclass finds a table as a statement would, along the search path.
SELECT count(*) AS tables
FROM pg_attribute
WHERE attrelid = to_regclass('schema_migrations')
  AND attname = 'checksum';

-- name: lock_migrations :one
-- params: none
-- Try to lock the migrations until the transaction ends.
-- Differs from sqlite: transactions run side by side; the number is ours, any would do. The lock is not waited for in a
-- transaction, since the building of an index waits for transactions.
SELECT CASE WHEN pg_try_advisory_xact_lock(7245916382) THEN 1 ELSE 0 END AS locked;

-- name: lock_index_builds :one
-- params: none
-- Try to lock the building of indexes until the session ends.
-- Differs from sqlite: the lock outlasts a transaction, and is not that of the migrations, which need not wait for it.
SELECT CASE WHEN pg_try_advisory_lock(7245916383) THEN 1 ELSE 0 END AS locked;

-- name: find_index :one
-- params: name
-- Whether an index is valid; one whose building was interrupted is not.
-- Differs from sqlite: only here can there be such an index.
SELECT CASE WHEN indisvalid THEN 1 ELSE 0 END AS whole
FROM pg_index
WHERE indexrelid = to_regclass(:name);

-- name: find_place :one
-- params: schema?
-- The place where new tables would be created, the role and whether it may; and whether the requested schema exists.
-- Differs from sqlite: which has neither schemas nor roles.
SELECT quote_ident(current_user) AS role,
       quote_ident(current_schema()) AS place,
       current_setting('search_path') AS path,
       COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE) AS creates_tables,
       to_regnamespace(CAST(:schema AS TEXT)) IS NOT NULL AS is_there,
       has_database_privilege(current_database(), 'CREATE') AS creates_schemas;

-- name: list_tables :many
-- params: names
-- Those of the named tables that exist: their owners, and whether the role has the privileges that it needs.
-- Differs from sqlite: only here can a table belong to others.
SELECT CAST(pg_class.relname AS TEXT) AS name,
       CAST(CAST(pg_class.relnamespace AS REGNAMESPACE) AS TEXT) AS place,
       quote_ident(pg_get_userbyid(pg_class.relowner)) AS owner,
       pg_has_role(pg_class.relowner, 'USAGE') AS is_owned,
       has_table_privilege(pg_class.oid, 'SELECT') AND has_table_privilege(pg_class.oid, 'INSERT')
           AND has_table_privilege(pg_class.oid, 'UPDATE') AND has_table_privilege(pg_class.oid, 'DELETE') AS is_usable
FROM jsonb_array_elements_text(CAST(:names AS JSONB)) AS named (name)
JOIN pg_class ON pg_class.oid = to_regclass(named.name);
