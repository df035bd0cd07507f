-- schema_migrations: what each database answers in its own way.

-- name: has_migrations :one
-- params: none
-- Whether the table is there; it is not in a new database, where others may have one of that name.
-- Differs from sqlite: to_regclass finds a table as a statement would, along the search path.
SELECT count(*) AS tables
FROM pg_attribute
WHERE attrelid = to_regclass('schema_migrations')
  AND attname = 'checksum';

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

-- name: find_place :one
-- params: schema?
-- Where new tables would be made, by which role and whether it may; and whether the schema that was asked for is there.
-- Differs from sqlite: which has neither schemas nor roles.
SELECT quote_ident(current_user) AS role,
       quote_ident(current_schema()) AS place,
       current_setting('search_path') AS path,
       COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE) AS creates_tables,
       to_regnamespace(CAST(:schema AS TEXT)) IS NOT NULL AS is_there,
       has_database_privilege(current_database(), 'CREATE') AS creates_schemas;

-- name: list_tables :many
-- params: names
-- Those of the named tables that are there: whose they are, and whether the role may do with them what it has to.
-- Differs from sqlite: only here can a table belong to others.
SELECT CAST(pg_class.relname AS TEXT) AS name,
       CAST(CAST(pg_class.relnamespace AS REGNAMESPACE) AS TEXT) AS place,
       quote_ident(pg_get_userbyid(pg_class.relowner)) AS owner,
       pg_has_role(pg_class.relowner, 'USAGE') AS is_owned,
       has_table_privilege(pg_class.oid, 'SELECT') AND has_table_privilege(pg_class.oid, 'INSERT')
           AND has_table_privilege(pg_class.oid, 'UPDATE') AND has_table_privilege(pg_class.oid, 'DELETE') AS is_usable
FROM jsonb_array_elements_text(CAST(:names AS JSONB)) AS named (name)
JOIN pg_class ON pg_class.oid = to_regclass(named.name);
