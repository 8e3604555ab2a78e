-- name: lock_migrations
SELECT pg_advisory_xact_lock(%(lock_class)s, 0)

-- name: versions
SELECT
    current_setting('server_version'),
    (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
    (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')

-- name: has_migrations
SELECT to_regclass('embedding_studio.schema_migrations') IS NOT NULL

-- name: applied_migrations
SELECT number FROM embedding_studio.schema_migrations

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS vector

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS embedding_studio

-- name: create_migrations
CREATE TABLE IF NOT EXISTS embedding_studio.schema_migrations (
    number integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: record_migration
INSERT INTO embedding_studio.schema_migrations (number) VALUES (%(number)s)

-- name: vitals
SELECT extract(epoch FROM clock_timestamp())::float8, pg_database_size(current_database())
