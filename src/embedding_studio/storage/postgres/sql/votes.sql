-- name: near
-- Limits stand in the text: were they parameters, a plan that does not know them would seem to cost more than it
-- does, and each search would be planned again, which takes as long as to run it.
-- The threshold is asked of what the index brought: as a condition on what it may bring, it would have the
-- index look through a great part of all queries wherever few are near.
WITH drawn AS MATERIALIZED (
    SELECT query_key, query, query <=> %(query)b::vector AS distance
    FROM {schema}.shared_queries
    ORDER BY query{cast} <=> %(query)b::vector{cast}, query_key
    LIMIT {queries}
),
near AS MATERIALIZED (
    SELECT query_key, query, distance FROM drawn WHERE distance < 1 - %(threshold)s
),
counted AS MATERIALIZED (
    SELECT DISTINCT ON (vote.user_id) near.query_key, vote.*
    FROM near
        CROSS JOIN LATERAL (
            SELECT user_id, clicked_mean, created_at, object_ids, clicks, looks
            FROM {schema}.shared_votes AS vote
            WHERE vote.query_key = near.query_key AND user_id IS DISTINCT FROM %(user_id)s::text
            ORDER BY created_at DESC, user_id
            LIMIT {votes}
        ) AS vote
    ORDER BY vote.user_id, near.distance, near.query_key
),
now AS MATERIALIZED (
    SELECT created_at FROM counted ORDER BY created_at DESC OFFSET {shared_by} - 1 LIMIT 1
),
weighed AS (
    SELECT
        query_key, object_ids, clicks, looks,
        0.5::float8 ^ least(
            greatest(now.created_at::float8 - counted.created_at, 0) / {half_life}::float8, {most}
        ) AS weight
    FROM counted CROSS JOIN now
),
seen AS (
    SELECT
        query_key,
        object.object_id,
        count(*) FILTER (WHERE object.clicks > 0) AS users,
        sum(weight * object.clicks) AS clicks,
        sum(weight * object.looks) AS looks
    FROM weighed
        CROSS JOIN LATERAL unnest(object_ids, clicks, looks) AS object(object_id, clicks, looks)
    GROUP BY query_key, object.object_id
)
SELECT near.query, said.clicked_mean, said.users, objects.object_ids, objects.users, objects.clicks, objects.looks
FROM (
    SELECT query_key, avg(clicked_mean) AS clicked_mean, count(*) AS users FROM counted GROUP BY query_key
) AS said JOIN near USING (query_key)
    LEFT JOIN (
        SELECT
            query_key,
            array_agg(object_id ORDER BY object_id COLLATE "C") AS object_ids,
            array_agg(users ORDER BY object_id COLLATE "C") AS users,
            array_agg(clicks ORDER BY object_id COLLATE "C") AS clicks,
            array_agg(looks ORDER BY object_id COLLATE "C") AS looks
        FROM seen
        GROUP BY query_key
    ) AS objects USING (query_key)
WHERE (SELECT count(*) FROM counted) >= {shared_by}
ORDER BY near.distance, near.query_key

-- name: votes
SELECT query_key, query, clicked_mean, created_at, object_ids, clicks, looks
FROM {schema}.shared_votes JOIN {schema}.shared_queries USING (query_key)
WHERE user_id = %(user_id)s
ORDER BY query_key

-- name: query_keys
SELECT DISTINCT query_key FROM {schema}.shared_votes WHERE user_id = ANY(%(user_ids)s::text[])

-- name: lock_votes
SELECT pg_advisory_xact_lock(%(lock_class)s, %(collection_id)s::int)

-- name: share_votes
SELECT pg_advisory_xact_lock_shared(%(lock_class)s, %(collection_id)s::int)

-- name: delete_votes
DELETE FROM {schema}.shared_votes WHERE user_id = ANY(%(user_ids)s::text[])

-- name: insert_queries
-- In one order, so that two who bring the same queries wait for each other and not in a circle.
INSERT INTO {schema}.shared_queries (query_key, query)
SELECT query_key, query
FROM unnest(%(query_keys)s::text[], %(queries)b::vector[]) WITH ORDINALITY AS given(query_key, query, ordinal)
ORDER BY query_key COLLATE "C", ordinal
ON CONFLICT (query_key) DO NOTHING

-- name: insert_votes
INSERT INTO {schema}.shared_votes (user_id, query_key, clicked_mean, created_at, object_ids, clicks, looks)
SELECT
    user_id, query_key, clicked_mean, created_at,
    array_remove(array_agg(object_id ORDER BY seen.ordinal), NULL),
    array_remove(array_agg(clicks ORDER BY seen.ordinal), NULL),
    array_remove(array_agg(looks ORDER BY seen.ordinal), NULL)
FROM unnest(
    %(user_ids)s::text[], %(query_keys)s::text[], %(clicked_means)b::vector[], %(created_ats)s::bigint[]
) WITH ORDINALITY AS vote(user_id, query_key, clicked_mean, created_at, vote_ordinal)
    LEFT JOIN unnest(
        %(vote_ordinals)s::bigint[], %(object_ids)s::text[], %(clicks)s::float8[], %(looks)s::float8[]
    ) WITH ORDINALITY AS seen(vote_ordinal, object_id, clicks, looks, ordinal) USING (vote_ordinal)
GROUP BY vote_ordinal, user_id, query_key, clicked_mean, created_at

-- name: delete_queries
DELETE FROM {schema}.shared_queries AS asked
WHERE query_key = ANY(%(query_keys)s::text[])
    AND NOT EXISTS (SELECT FROM {schema}.shared_votes AS vote WHERE vote.query_key = asked.query_key)
