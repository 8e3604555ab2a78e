-- Codes hold a byte for each component. Those of two bits are let go; the program writes the others (pg_codes).
DO $$
DECLARE
    collection record;
BEGIN
    FOR collection IN
        SELECT format('collection_%s', collection_id) AS name FROM embedding_studio.collections
    LOOP
        EXECUTE format('DELETE FROM %1$I.codes; UPDATE %1$I.revision SET epoch = 0, centre = NULL', collection.name);
    END LOOP;
END
$$;
