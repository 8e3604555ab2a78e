-- The tables of votes, for collections that are there already; those made from now on have them from
-- collections.sql, which says what they are.
DO $$
DECLARE
    collection record;
BEGIN
    FOR collection IN
        SELECT
            format('collection_%s', collection_id) AS name,
            dimensions,
            CASE WHEN dimensions <= 2000 THEN 'PLAIN' ELSE 'EXTERNAL' END AS storage,
            CASE
                WHEN dimensions <= 2000 THEN '(query) vector_cosine_ops'
                ELSE format('(query::halfvec(%s)) halfvec_cosine_ops', dimensions)
            END AS indexed
        FROM embedding_studio.collections
            CROSS JOIN LATERAL (SELECT (index_info ->> 'dimensions')::integer AS dimensions) AS info
    LOOP
        EXECUTE format('
            CREATE TABLE %1$I.shared_queries (
                query_key text COLLATE "C" PRIMARY KEY,
                query vector(%2$s) NOT NULL
            );
            ALTER TABLE %1$I.shared_queries ALTER COLUMN query SET STORAGE %3$s;
            CREATE INDEX shared_queries_nearest ON %1$I.shared_queries USING hnsw (%4$s);
            CREATE TABLE %1$I.shared_votes (
                user_id text COLLATE "C",
                query_key text COLLATE "C" REFERENCES %1$I.shared_queries,
                clicked_mean vector(%2$s) NOT NULL,
                created_at bigint NOT NULL,
                PRIMARY KEY (user_id, query_key)
            );
            ALTER TABLE %1$I.shared_votes ALTER COLUMN clicked_mean SET STORAGE %3$s;
            CREATE INDEX shared_votes_latest ON %1$I.shared_votes (query_key, created_at DESC, user_id);
            ', collection.name, collection.dimensions, collection.storage, collection.indexed);
    END LOOP;
END
$$;
