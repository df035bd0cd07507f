-- schema_migrations: which migrations this database has had, and what was in them.

-- name: create_migrations :run
-- params: none
-- The table itself. It keeps the record of the migrations, so it cannot be made by one.
CREATE TABLE IF NOT EXISTS schema_migrations (
    number         INTEGER  NOT NULL,
    name           TEXT     NOT NULL,
    checksum       TEXT     NOT NULL,
    applied_at_us  BIGINT   NOT NULL,
    CONSTRAINT schema_migrations_have_one_number_each PRIMARY KEY (number)
);

-- name: insert_migration :run
-- params: number, name, checksum, applied_at_us
-- A migration has been applied.
INSERT INTO schema_migrations (number, name, checksum, applied_at_us)
VALUES (:number, :name, :checksum, :applied_at_us);

-- name: list_migrations :many
-- params: none
-- What has been applied.
SELECT number, name, checksum
FROM schema_migrations
ORDER BY number;
