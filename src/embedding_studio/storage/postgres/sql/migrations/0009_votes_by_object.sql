-- What each vote says of objects, for collections that are there already; the votes they have say nothing of any
-- until their users are folded anew. New collections have it from collections.sql.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('collection_%s', collection_id) FROM embedding_studio.collections
    LOOP
        EXECUTE format('
            ALTER TABLE %1$I.shared_votes
                ADD COLUMN object_ids text[] NOT NULL DEFAULT ''{}'',
                ADD COLUMN clicks float8[] NOT NULL DEFAULT ''{}'',
                ADD COLUMN looks float8[] NOT NULL DEFAULT ''{}''
            ', name);
        EXECUTE format('
            ALTER TABLE %1$I.shared_votes
                ALTER COLUMN object_ids DROP DEFAULT,
                ALTER COLUMN clicks DROP DEFAULT,
                ALTER COLUMN looks DROP DEFAULT
            ', name);
    END LOOP;
END
$$;
