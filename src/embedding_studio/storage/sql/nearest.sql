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
SELECT near.object_id, near.distance, objects.payload, near.object_no
FROM (
    SELECT part.object_id, part.object_no, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM {schema}.parts AS part CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average} AND {among}
    GROUP BY part.object_id, part.object_no
    ORDER BY distance, part.object_id
    LIMIT %(limit)s
) AS near JOIN {schema}.objects AS objects USING (object_id)
ORDER BY near.distance, near.object_id

-- name: chosen
-- Candidates are compared, and the filter is asked of the nearest of them.
WITH near AS MATERIALIZED (
    SELECT part.object_id, part.object_no, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM unnest(%(candidates)b::bigint[]) AS candidate(object_no)
        JOIN {schema}.parts AS part USING (object_no)
        CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average}
    GROUP BY part.object_id, part.object_no
    ORDER BY distance, part.object_id
    LIMIT %(considered)s
)
SELECT near.object_id, near.distance, o.payload, near.object_no
FROM near JOIN {schema}.objects AS o USING (object_id)
WHERE {condition}
ORDER BY near.distance, near.object_id
LIMIT %(limit)s

-- name: moved
-- What the user has copies of: a row with the numbers of all, and the nearest of them by both distances (eq. 6 in
-- embeddings/personal).
WITH copied AS MATERIALIZED (
    SELECT
        personal.object_id,
        given.gate,
        {pair_aggregate}(personal.embedding {pair_operator} query.vector) AS distance
    FROM unnest(%(moved_ids)s::text[], %(gates)b::float8[]) AS given(object_id, gate)
        JOIN {schema}.personal_parts AS personal USING (object_id)
        CROSS JOIN unnest(%(parts)b::vector[]) AS query(vector)
    WHERE personal.user_id = %(user_id)s
    GROUP BY personal.object_id, given.gate
), blended AS MATERIALIZED (
    SELECT
        copied.object_id,
        part.object_no,
        (1 - copied.gate) * ({aggregate}(part.embedding {operator} query.vector) + %(offset)s)
            + copied.gate * copied.distance AS distance
    FROM copied
        JOIN {schema}.parts AS part USING (object_id)
        CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average}
    GROUP BY copied.object_id, copied.gate, copied.distance, part.object_no
)
SELECT NULL AS object_id, NULL::float8 AS distance, NULL::jsonb AS payload, array_agg(object_no ORDER BY object_no)
FROM blended
UNION ALL (
    SELECT object_id, blended.distance, o.payload, NULL
    FROM blended JOIN {schema}.objects AS o USING (object_id)
    WHERE {condition}
    ORDER BY blended.distance, object_id
    LIMIT %(wanted)s
)
