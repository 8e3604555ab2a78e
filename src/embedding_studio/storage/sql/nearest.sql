-- name: begin
-- A payload that changes meanwhile matches for the neighbours and for what is moved, or for neither.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: commit
COMMIT

-- name: settings
-- For the statement after it. A plan that did not know the parameters has silently lost nearly all results.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true)

-- name: matching
SELECT array_agg(object_no ORDER BY object_no) FROM {schema}.objects AS o WHERE {condition}

-- name: among_all
true

-- name: among_matching
part.object_id IN (SELECT object_id FROM {schema}.objects AS o WHERE {condition})

-- name: exact
-- All are compared.
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

-- name: chosen
-- Candidates are compared, and the filter is asked of the nearest of them.
WITH near AS MATERIALIZED (
    SELECT part.object_id, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM unnest(%(candidates)b::bigint[]) AS candidate(object_no)
        JOIN {schema}.parts AS part USING (object_no)
        CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average}
    GROUP BY part.object_id
    ORDER BY distance, part.object_id
    LIMIT %(considered)s
)
SELECT near.object_id, near.distance, o.payload
FROM near JOIN {schema}.objects AS o USING (object_id)
WHERE {condition}
ORDER BY near.distance, near.object_id
LIMIT %(limit)s

-- name: moved
SELECT
    part.object_id,
    CASE part.part_no WHEN 0 THEN o.payload END,
    part.embedding,
    personal.embedding,
    o.object_no
FROM {schema}.personal_parts AS personal
    JOIN {schema}.parts AS part USING (object_id, part_no)
    JOIN {schema}.objects AS o USING (object_id)
WHERE personal.user_id = %(user_id)s AND personal.object_id = ANY(%(moved_ids)s::text[]) AND {condition}
ORDER BY part.object_id, part.part_no
