-- name: existing_parts
SELECT object_id, embedding
FROM {schema}.parts
WHERE object_id = ANY(%(object_ids)s::text[]) AND NOT is_average
ORDER BY object_id, part_no

-- name: delete_parts
DELETE FROM {schema}.parts WHERE object_id = ANY(%(object_ids)s::text[])

-- name: existing_nos
SELECT object_id, object_no FROM {schema}.objects WHERE object_id = ANY(%(object_ids)s::text[])

-- name: upsert_objects
INSERT INTO {schema}.objects (object_id, payload, content_hash, object_no)
SELECT *
FROM unnest(%(object_ids)s::text[], %(payloads)s::jsonb[], %(content_hashes)s::text[], %(object_nos)b::bigint[])
ON CONFLICT (object_id) DO UPDATE
SET payload = excluded.payload, content_hash = excluded.content_hash, object_no = excluded.object_no

-- name: copy_parts
COPY {schema}.parts (object_id, part_no, is_average, embedding, object_no) FROM STDIN (FORMAT binary)

-- name: delete
WITH gone AS (DELETE FROM {schema}.parts WHERE object_id = ANY(%(object_ids)s::text[]))
DELETE FROM {schema}.objects WHERE object_id = ANY(%(object_ids)s::text[])

-- name: compared_parts
-- The object's number for each part that has a code.
SELECT object_no
FROM {schema}.parts
WHERE object_id = ANY(%(object_ids)s::text[]) AND is_average = %(is_average)s

-- name: get
SELECT object_id, payload, content_hash
FROM {schema}.objects
WHERE object_id = ANY(%(object_ids)s::text[])

-- name: update_payloads
UPDATE {schema}.objects AS o
SET payload = given.payload, content_hash = left(o.content_hash, %(text_hash_length)s)
FROM unnest(%(object_ids)s::text[], %(payloads)s::jsonb[]) AS given(object_id, payload)
WHERE o.object_id = given.object_id
RETURNING o.object_id, o.object_no

-- name: scroll
-- The payload stands beside the first part alone.
WITH page AS (
    SELECT o.object_id, o.payload, o.content_hash
    FROM {schema}.objects AS o
    WHERE (%(after)s::text IS NULL OR o.object_id > %(after)s::text) AND {condition}
    ORDER BY o.object_id
    LIMIT %(limit)s
)
SELECT object_id, embedding, content_hash, CASE part_no WHEN 0 THEN payload END
FROM page JOIN {schema}.parts USING (object_id)
WHERE NOT is_average
ORDER BY object_id, part_no

-- name: content_hashes
SELECT object_id, content_hash
FROM {schema}.objects
WHERE object_id = ANY(%(object_ids)s::text[]) AND content_hash IS NOT NULL

-- name: count
SELECT count(*) FROM {schema}.objects
