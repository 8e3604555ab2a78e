-- name: begin
-- A payload that changes meanwhile matches for the neighbours and for what is moved, or for neither.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: commit
COMMIT

-- name: settings
-- For the statement after it. A plan that did not know the parameters has silently lost nearly all results.
SELECT
    set_config('plan_cache_mode', 'force_custom_plan', true),
    set_config('hnsw.ef_search', %(ef_search)s::text, true),
    set_config('hnsw.max_scan_tuples', %(scanned)s::text, true),
    to_regclass(%(index)s) IS NOT NULL

-- name: is_indexed
SELECT to_regclass(%(index)s) IS NOT NULL

-- name: matching_if_few
SELECT CASE WHEN count(*) < %(many)s THEN coalesce(array_agg(object_id), '{{}}') END
FROM (SELECT object_id FROM {schema}.objects AS o WHERE {condition} LIMIT %(many)s) AS matching

-- name: among_all
true

-- name: among_matching
part.object_id IN (SELECT object_id FROM {schema}.objects AS o WHERE {condition})

-- name: among_few
part.object_id = ANY(%(matching)s::text[])

-- name: among_many
-- Asked of each part as the vector index brings it; as a join it could be planned the other way round.
(SELECT {condition} FROM {schema}.objects AS o WHERE o.object_id = part.object_id)

-- name: exact
SELECT near.object_id, near.distance, objects.payload
FROM (
    SELECT part.object_id, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM {schema}.parts AS part CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average} AND {among}
    GROUP BY part.object_id
    ORDER BY distance, part.object_id
    LIMIT %(limit)s
) AS near JOIN {schema}.objects AS objects USING (object_id)
ORDER BY near.distance, near.object_id

-- name: drawn
-- Each part of the query draws parts in order of distance. Once each has drawn as many objects as are
-- wanted, no object that is missing can be among the nearest.
WITH drawn AS MATERIALIZED (
    SELECT query.number, part.object_id, part.distance
    FROM unnest(%(queries)b::vector[]) WITH ORDINALITY AS query(vector, number)
        CROSS JOIN LATERAL (
            SELECT part.object_id, part.embedding {operator} query.vector AS distance
            FROM {schema}.parts AS part
            WHERE part.is_average = {is_average} AND {among}
            ORDER BY part.embedding{cast} {operator} query.vector{cast}
            LIMIT %(draws)s
        ) AS part
),
enough AS MATERIALIZED (
    SELECT min(objects) >= %(limit)s AS is_enough
    FROM (SELECT count(DISTINCT object_id) AS objects FROM drawn GROUP BY number) AS counted
)
SELECT near.object_id, near.distance, objects.payload
FROM (
    SELECT object_id, min(distance) AS distance
    FROM drawn
    WHERE (SELECT is_enough FROM enough)
    GROUP BY object_id
    ORDER BY distance, object_id
    LIMIT %(limit)s
) AS near JOIN {schema}.objects AS objects USING (object_id)
ORDER BY near.distance, near.object_id

-- name: drawn_by_average
-- The distance to the average vector is never more than the average distance: candidates come by the first
-- and are ranked by the second. Once the first passes the last of those wanted, none that is missing is nearer.
WITH drawn AS MATERIALIZED (
    SELECT part.object_id, part.embedding {operator} %(average_query)b::vector AS distance
    FROM {schema}.parts AS part
    WHERE part.is_average = {is_average} AND {among}
    ORDER BY part.embedding{cast} {operator} %(average_query)b::vector{cast}
    LIMIT %(draws)s
),
near AS MATERIALIZED (
    SELECT part.object_id, avg(part.embedding {operator} query.vector) AS distance
    FROM {schema}.parts AS part CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE NOT part.is_average AND part.object_id IN (SELECT object_id FROM drawn)
    GROUP BY part.object_id
    ORDER BY distance, part.object_id
    LIMIT %(limit)s
)
SELECT near.object_id, near.distance, objects.payload
FROM near JOIN {schema}.objects AS objects USING (object_id)
WHERE (SELECT max(distance) FROM drawn) > (SELECT max(distance) FROM near)
ORDER BY near.distance, near.object_id

-- name: moved
SELECT
    part.object_id,
    CASE part.part_no WHEN 0 THEN o.payload END,
    part.embedding,
    personal.embedding
FROM {schema}.personal_parts AS personal
    JOIN {schema}.parts AS part USING (object_id, part_no)
    JOIN {schema}.objects AS o USING (object_id)
WHERE personal.user_id = %(user_id)s AND personal.object_id = ANY(%(moved_ids)s::text[]) AND {condition}
ORDER BY part.object_id, part.part_no
