-- Parts of collections that are there already no longer look up their object one by one, which took as long as storing
-- them: who writes or deletes either has the collection's originals locked, and does both in one transaction.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('collection_%s', collection_id) FROM embedding_studio.collections
    LOOP
        EXECUTE format('ALTER TABLE %I.parts DROP CONSTRAINT parts_object_id_fkey', name);
    END LOOP;
END
$$;
