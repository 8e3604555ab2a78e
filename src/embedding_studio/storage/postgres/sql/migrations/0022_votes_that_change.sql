-- Which queries' votes changed when, for collections that are there already; those made from now on have it from
-- collections.sql, which says what it is.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('collection_%s', collection_id) FROM embedding_studio.collections
    LOOP
        EXECUTE format('
            ALTER TABLE %1$I.shared_queries ADD COLUMN query_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE;
            CREATE TABLE %1$I.vote_changes (
                xid xid8 PRIMARY KEY DEFAULT pg_current_xact_id(),
                at timestamptz NOT NULL DEFAULT clock_timestamp(),
                query_nos bigint[] NOT NULL
            );
            CREATE INDEX vote_changes_at ON %1$I.vote_changes (at);
            ', name);
    END LOOP;
END
$$;
