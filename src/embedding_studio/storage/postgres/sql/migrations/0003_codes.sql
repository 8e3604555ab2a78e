-- Codes instead of a vector index, for collections that are there already; those made from now on have their tables
-- from collections.sql, which says what they are. The codes themselves are written by the program (pg_codes).
DO $$
DECLARE
    collection record;
BEGIN
    FOR collection IN
        SELECT format('collection_%s', collection_id) AS name FROM embedding_studio.collections
    LOOP
        EXECUTE format('
            ALTER TABLE %1$I.objects ADD COLUMN object_no bigint;
            UPDATE %1$I.objects SET object_no = numbered.object_no
            FROM (SELECT object_id, row_number() OVER (ORDER BY object_id) AS object_no FROM %1$I.objects) AS numbered
            WHERE numbered.object_id = objects.object_id;
            ALTER TABLE %1$I.objects ALTER COLUMN object_no SET NOT NULL;
            ALTER TABLE %1$I.parts ADD COLUMN object_no bigint;
            DROP INDEX IF EXISTS %1$I.parts_nearest;
            UPDATE %1$I.parts SET object_no = objects.object_no
            FROM %1$I.objects
            WHERE objects.object_id = parts.object_id;
            ALTER TABLE %1$I.parts ALTER COLUMN object_no SET NOT NULL;
            CREATE INDEX parts_of_object ON %1$I.parts (object_no);
            CREATE TABLE %1$I.revision (
                revision bigint NOT NULL DEFAULT 0,
                object_no bigint NOT NULL DEFAULT 0,
                epoch bigint NOT NULL DEFAULT 0,
                centre bytea,
                margin double precision,
                encoded bigint NOT NULL DEFAULT 0,
                added bigint NOT NULL DEFAULT 0,
                removed bigint NOT NULL DEFAULT 0,
                blocks bigint NOT NULL DEFAULT 0
            );
            INSERT INTO %1$I.revision (object_no) SELECT count(*) FROM %1$I.objects;
            CREATE TABLE %1$I.codes (
                block bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                revision bigint NOT NULL,
                object_nos bytea NOT NULL,
                codes bytea NOT NULL,
                removed bytea NOT NULL
            );
            ALTER TABLE %1$I.codes
                ALTER COLUMN object_nos SET STORAGE EXTERNAL,
                ALTER COLUMN codes SET STORAGE EXTERNAL,
                ALTER COLUMN removed SET STORAGE EXTERNAL;
            CREATE INDEX codes_by_revision ON %1$I.codes (revision);
            ', collection.name);
    END LOOP;
END
$$;

-- The parameters of the graph that is gone.
UPDATE embedding_studio.collections SET index_info = index_info - 'hnsw';
