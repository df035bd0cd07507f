-- schema_migrations: the migrations that this database has had, with their checksums.

-- name: create_migrations :run
-- params: none
-- Create the table itself. It records the migrations, so no migration can create it.
CREATE TABLE IF NOT EXISTS schema_migrations (
    number         INTEGER  NOT NULL,
    name           TEXT     NOT NULL,
    checksum       TEXT     NOT NULL,
    applied_at_us  BIGINT   NOT NULL,
    CONSTRAINT schema_migrations_have_one_number_each PRIMARY KEY (number)
);

-- name: insert_migration :run
-- params: number, name, checksum, applied_at_us
-- Record that a migration has been applied.
INSERT INTO schema_migrations (number, name, checksum, applied_at_us)
VALUES (:number, :name, :checksum, :applied_at_us);

-- name: list_migrations :many
-- params: none
-- The migrations that have been applied.
SELECT number, name, checksum
FROM schema_migrations
ORDER BY number;
