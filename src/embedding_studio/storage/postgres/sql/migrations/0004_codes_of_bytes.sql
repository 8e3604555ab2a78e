-- Codes hold a byte for each component. Those of two bits are let go; the program writes the others (pg_codes).
-- Copies know the number of their object, by which codes are asked for it.
DO $$
DECLARE
    collection record;
BEGIN
    FOR collection IN
        SELECT format('collection_%s', collection_id) AS name FROM embedding_studio.collections
    LOOP
        EXECUTE format('
            DELETE FROM %1$I.codes;
            UPDATE %1$I.revision SET epoch = 0, centre = NULL, margin = NULL;
            ALTER TABLE %1$I.personal_parts ADD COLUMN object_no bigint;
            UPDATE %1$I.personal_parts SET object_no = objects.object_no
            FROM %1$I.objects
            WHERE objects.object_id = personal_parts.object_id;
            ', collection.name);
    END LOOP;
END
$$;
