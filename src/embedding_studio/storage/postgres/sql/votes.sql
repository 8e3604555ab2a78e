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

-- name: voted
SELECT user_id, query_key FROM {schema}.shared_votes WHERE user_id = ANY(%(user_ids)s::text[])

-- name: lock_votes
SELECT pg_advisory_xact_lock(%(lock_class)s, %(collection_id)s::int)

-- name: share_votes
SELECT pg_advisory_xact_lock_shared(%(lock_class)s, %(collection_id)s::int)

-- name: insert_queries
-- In one order, so that two who bring the same queries wait for each other and not in a circle.
INSERT INTO {schema}.shared_queries (query_key, query)
SELECT query_key, query
FROM unnest(%(query_keys)s::text[], %(queries)b::vector[]) WITH ORDINALITY AS given(query_key, query, ordinal)
ORDER BY query_key COLLATE "C", ordinal
ON CONFLICT (query_key) DO NOTHING

-- name: write_votes
-- What a user says as before stays as it is; what changed is noted by the numbers of the queries.
WITH gone AS (
    DELETE FROM {schema}.shared_votes AS vote
    USING unnest(%(gone_user_ids)s::text[], %(gone_query_keys)s::text[]) AS former(user_id, query_key)
    WHERE (vote.user_id, vote.query_key) = (former.user_id, former.query_key)
    RETURNING vote.query_key
),
written AS (
    INSERT INTO {schema}.shared_votes AS before
        (user_id, query_key, clicked_mean, created_at, object_ids, clicks, looks)
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
    ON CONFLICT (user_id, query_key) DO UPDATE
    SET (clicked_mean, created_at, object_ids, clicks, looks) =
        (excluded.clicked_mean, excluded.created_at, excluded.object_ids, excluded.clicks, excluded.looks)
    WHERE (before.clicked_mean, before.created_at, before.object_ids, before.clicks, before.looks)
        IS DISTINCT FROM
        (excluded.clicked_mean, excluded.created_at, excluded.object_ids, excluded.clicks, excluded.looks)
    RETURNING query_key
)
INSERT INTO {schema}.vote_changes AS earlier (query_nos)
SELECT array_agg(query_no)
FROM (SELECT query_key FROM gone UNION SELECT query_key FROM written) AS changed
    JOIN {schema}.shared_queries USING (query_key)
HAVING count(*) > 0
ON CONFLICT (xid) DO UPDATE SET at = excluded.at, query_nos = earlier.query_nos || excluded.query_nos

-- name: forget_changes
-- Who knows nothing newer than these reads all queries. Those that another removes just now are passed over.
DELETE FROM {schema}.vote_changes
WHERE xid IN (
    SELECT xid FROM {schema}.vote_changes
    WHERE at < clock_timestamp() - make_interval(secs => %(seconds)s)
    ORDER BY at
    LIMIT 100
    FOR UPDATE SKIP LOCKED
)

-- name: delete_queries
DELETE FROM {schema}.shared_queries AS asked
WHERE query_key = ANY(%(query_keys)s::text[])
    AND NOT EXISTS (SELECT FROM {schema}.shared_votes AS vote WHERE vote.query_key = asked.query_key)

-- name: queries
SELECT pg_current_snapshot()::text, query_no, query_key, query
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT query_no, query_key, query FROM {schema}.shared_queries LIMIT %(most)s
) AS asked ON true

-- name: is_since
-- Of a transaction of the log that is not seen from a moment. Notes of another server, whose copy this database is,
-- may have numbers that are not given yet.
change.xid >= pg_snapshot_xmin(%(votes)s::pg_snapshot)
AND NOT pg_visible_in_snapshot(change.xid, %(votes)s::pg_snapshot)
AND change.xid < pg_snapshot_xmax(pg_current_snapshot())

-- name: changed_queries
SELECT pg_current_snapshot()::text, query_no, query_key, query
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT DISTINCT query_no
    FROM {schema}.vote_changes AS change CROSS JOIN unnest(query_nos) AS query_no
    WHERE {is_since}
) AS changed ON true LEFT JOIN {schema}.shared_queries USING (query_no)

-- name: latest
SELECT vote.*
FROM unnest(%(query_keys)s::text[]) AS asked(query_key)
    CROSS JOIN LATERAL (
        SELECT query_key, user_id, clicked_mean, created_at, object_ids, clicks, looks
        FROM {schema}.shared_votes
        WHERE query_key = asked.query_key
        ORDER BY created_at DESC, user_id
        LIMIT %(count)s
    ) AS vote
