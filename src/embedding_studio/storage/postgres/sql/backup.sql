-- name: begin_snapshot
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0

-- name: snapshot
SELECT pg_export_snapshot()

-- name: is_there
SELECT to_regclass('embedding_studio.collections') IS NOT NULL

-- name: collection_schemas
SELECT 'collection_' || collection_id FROM embedding_studio.collections ORDER BY collection_id

-- name: tables
-- Those in which something is only where something was stored.
SELECT schemaname, tablename
FROM pg_tables
WHERE schemaname = ANY(%(schemas)s::text[]) AND tablename NOT IN ('schema_migrations', 'order_counts')
ORDER BY schemaname DESC, tablename

-- name: holds_a_row
SELECT FROM {table} LIMIT 1

-- name: others
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %(name)s AND pid <> pg_backend_pid()

-- name: prepare
-- Who opens the database meanwhile waits for the end, for its tables are gone until then.
CREATE EXTENSION IF NOT EXISTS vector;
SELECT pg_advisory_xact_lock({lock}, 0)

-- name: drop
DROP SCHEMA IF EXISTS {schema} CASCADE

-- name: functions_of_the_server
-- As migration 0001 makes them: what they can use depends on the server, which is another than the one backed up.
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE OR REPLACE FUNCTION embedding_studio.words(given text) RETURNS text[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT coalesce(array_agg(casefold(found[1] COLLATE pg_unicode_fast)), ''{}'')
                FROM regexp_matches(given COLLATE pg_unicode_fast, ''\w+'', ''g'') AS found';
        CREATE OR REPLACE FUNCTION embedding_studio.holds(given text, patterns text[]) RETURNS boolean
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT given IS NOT NULL AND casefold(given COLLATE pg_unicode_fast) ~ ALL (patterns)';
    ELSE
        CREATE OR REPLACE FUNCTION embedding_studio.words(given text) RETURNS text[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT coalesce(array_agg(lower(found[1])), ''{}'')
                FROM regexp_matches(given, ''\w+'', ''g'') AS found';
        CREATE OR REPLACE FUNCTION embedding_studio.holds(given text, patterns text[]) RETURNS boolean
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT given IS NOT NULL AND lower(given) ~ ALL (patterns)';
    END IF;
END
$$
