-- How much a user's own past counts, as learnt from the log; absent: in full.
ALTER TABLE embedding_studio.collections ADD COLUMN own_past jsonb;

-- How like its query each clicked object is, for collections that are there already: fully, until their users are
-- folded anew. New collections have it from collections.sql.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('collection_%s', collection_id) FROM embedding_studio.collections
    LOOP
        EXECUTE format('ALTER TABLE %I.query_memory ADD COLUMN likeness float8[] NOT NULL DEFAULT ''{}''', name);
        EXECUTE format('ALTER TABLE %I.query_memory ALTER COLUMN likeness DROP DEFAULT', name);
    END LOOP;
END
$$;
