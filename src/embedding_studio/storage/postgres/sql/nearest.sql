-- name: settings
-- For the statement after it. A plan that did not know the parameters has silently lost nearly all results.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true)

-- name: moment
-- What was so in the moment of an answer: the revision of the originals, what a name stood for, the state of a
-- user, and whether votes had changed since another moment; without a name or a user these are NULL.
(SELECT revision FROM {schema}.revision),
(SELECT collection_id || ' ' || c.xmin::text FROM (
    SELECT collection_id FROM embedding_studio.collections WHERE name = %(name)s
    UNION ALL
    SELECT collection_id FROM embedding_studio.collection_aliases WHERE alias = %(name)s
) AS named JOIN embedding_studio.collections AS c USING (collection_id)),
(SELECT xmin::text FROM {schema}.query_memory WHERE user_id = %(user_id)s LIMIT 1),
EXISTS (SELECT FROM {schema}.vote_changes AS change WHERE {is_since})

-- name: only_moment
SELECT {moment}

-- name: matching
SELECT array_agg(object_no ORDER BY object_no) FROM {schema}.objects AS o WHERE {condition}

-- name: among_all
true

-- name: among_matching
part.object_id IN (SELECT object_id FROM {schema}.objects AS o WHERE {condition})

-- name: exact
-- All are compared.
SELECT near.object_id, near.distance, objects.payload::text, near.object_no, {moment}
FROM (
    SELECT part.object_id, part.object_no, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM {schema}.parts AS part CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average} AND {among} AND part.object_no <> ALL(%(without)b::bigint[])
    GROUP BY part.object_id, part.object_no
    ORDER BY distance, part.object_id
    LIMIT %(limit)s
) AS near JOIN {schema}.objects AS objects USING (object_id)
ORDER BY near.distance, near.object_id

-- name: candidates
unnest(%(candidates)b::bigint[])

-- name: candidates_and_named
(
    SELECT unnest(%(candidates)b::bigint[])
    UNION
    SELECT object_no FROM {schema}.objects WHERE object_id = ANY(%(named)s::text[])
)

-- name: chosen
-- Candidates are compared, and asked whether they match a filter.
SELECT o.object_id, near.distance, o.payload::text, near.object_no, {moment}
FROM (
    SELECT part.object_id, part.object_no, {aggregate}(part.embedding {operator} query.vector) AS distance
    FROM {candidates} AS candidate(object_no)
        JOIN {schema}.parts AS part USING (object_no)
        CROSS JOIN unnest(%(queries)b::vector[]) AS query(vector)
    WHERE part.is_average = {is_average}
    GROUP BY part.object_id, part.object_no
    ORDER BY distance, part.object_id
    LIMIT %(considered)s::bigint
) AS near JOIN {schema}.objects AS o USING (object_id)
WHERE {condition}
ORDER BY near.distance, o.object_id
LIMIT %(limit)s::bigint
