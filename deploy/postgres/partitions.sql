-- Spreads the log by session, and the queue and what is learnt by user, over hash partitions of one server:
--
--     psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/partitions.sql
--
-- One transaction, in which every row is rewritten: stop the services and workers, and have as much disk free again.
-- What is spread already stays as it is, so run it once more after a collection was made, or with more partitions for
-- what is still one table. All statements of the program are the same with and without.
BEGIN;
SET LOCAL search_path = pg_catalog;

CREATE FUNCTION pg_temp.spread(place regclass, key text, count int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := place::text;
    plain text := (SELECT relname || '_plain' FROM pg_class WHERE oid = place);
    part text := (SELECT relnamespace::regnamespace || '.' || quote_ident(relname || '_') FROM pg_class WHERE oid = place);
    dropped text[];
    again text[];
    statement text;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = place) = 'p' THEN
        RETURN;
    END IF;
    SELECT
        array_agg(format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)),
        array_agg(format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)))
    INTO dropped, again
    FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0 AND (conrelid = place OR confrelid = place);
    again := again || (
        SELECT array_agg(pg_get_triggerdef(oid)) FROM pg_trigger WHERE tgrelid = place AND NOT tgisinternal
    );
    FOREACH statement IN ARRAY coalesce(dropped, '{}') LOOP
        EXECUTE statement;
    END LOOP;
    EXECUTE format('ALTER TABLE %s RENAME TO %I', name, plain);
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL) PARTITION BY HASH (%I)', name, place, key);
    FOR number IN 0 .. count - 1 LOOP
        EXECUTE format(
            'CREATE TABLE %s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
            part || number, name, count, number
        );
    END LOOP;
    EXECUTE format('INSERT INTO %s SELECT * FROM %s', name, place);
    EXECUTE format('DROP TABLE %s', place);
    FOREACH statement IN ARRAY coalesce(again, '{}') LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

SELECT pg_temp.spread(format('embedding_studio.%I', given.name)::regclass, given.key, 16)
FROM (VALUES
    ('sessions', 'session_id'),
    ('session_events', 'session_id'),
    ('sessions_for_improvement', 'session_id'),
    ('waiting_events', 'session_id'),
    ('queue', 'user_id')
) AS given(name, key);

SELECT pg_temp.spread(format('collection_%s.%I', collection_id, given.name)::regclass, 'user_id', 16)
FROM embedding_studio.collections
    CROSS JOIN (VALUES ('personal_parts'), ('query_memory'), ('shared_votes')) AS given(name);

COMMIT;
