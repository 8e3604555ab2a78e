-- name: note
INSERT INTO embedding_studio.outbox (collection_id, object_no, parts)
SELECT %(collection_id)s::bigint, *
FROM unnest(%(object_nos)b::bigint[], %(parts)b::bigint[])

-- name: try_lock
-- One sends to an engine at a time, so that what it is sent of an object last is what it is.
SELECT pg_try_advisory_xact_lock(%(lock_class)s, %(collection_id)s::int)

-- name: due
SELECT change, object_no, parts
FROM embedding_studio.outbox
WHERE collection_id = %(collection_id)s AND not_before <= embedding_studio.seconds()
ORDER BY change
LIMIT %(limit)s

-- name: due_collections
SELECT collection_id
FROM embedding_studio.collections AS c
WHERE filled IS NOT NULL AND EXISTS (
    SELECT FROM embedding_studio.outbox AS o
    WHERE o.collection_id = c.collection_id AND not_before <= embedding_studio.seconds()
)

-- name: delivered
DELETE FROM embedding_studio.outbox WHERE change = ANY(%(changes)s::bigint[])

-- name: refused
UPDATE embedding_studio.outbox
SET attempts = attempts + 1, error = %(error)s,
    not_before = embedding_studio.seconds() + least(%(first)s * 2::float8 ^ least(attempts, 30), %(longest)s)
WHERE change = ANY(%(changes)s::bigint[])

-- name: pending
-- With the revision of the originals, of one moment.
SELECT (SELECT revision FROM {schema}.revision), array_agg(object_no)
FROM (
    SELECT object_no FROM embedding_studio.outbox WHERE collection_id = %(collection_id)s LIMIT %(limit)s
) AS pending

-- name: backlog
SELECT c.collection_id, c.name, count(DISTINCT o.object_no), coalesce(embedding_studio.seconds() - min(o.since), 0)::float8,
    count(DISTINCT o.object_no) FILTER (WHERE o.error IS NOT NULL), max(o.error)
FROM embedding_studio.collections AS c LEFT JOIN embedding_studio.outbox AS o USING (collection_id)
WHERE c.filled IS NOT NULL
GROUP BY c.collection_id
ORDER BY c.name

-- name: objects
-- What an engine has of these, by vectors; the payload beside the first alone.
SELECT part.object_no, part.part_no, part.embedding, o.object_id,
    CASE WHEN part.part_no <= 0 THEN o.payload END
FROM {schema}.parts AS part JOIN {schema}.objects AS o USING (object_id)
WHERE part.object_no = ANY(%(object_nos)b::bigint[]) AND part.is_average = %(is_average)s
ORDER BY part.object_no, part.part_no

-- name: numbers_after
SELECT array_agg(object_no)
FROM (
    SELECT DISTINCT object_no FROM {schema}.parts WHERE object_no > %(after)s ORDER BY object_no LIMIT %(limit)s
) AS page

-- name: owner
SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()

-- name: take_over
UPDATE embedding_studio.collections SET filled = filled || jsonb_build_object('owner', %(owner)s::text)
WHERE collection_id = %(collection_id)s

-- name: objects_beside
SELECT EXISTS (SELECT FROM {schema}.parts WHERE object_no <> ALL(%(object_nos)b::bigint[])),
    (SELECT revision FROM {schema}.revision)
