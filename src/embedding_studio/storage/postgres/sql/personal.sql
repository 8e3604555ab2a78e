-- name: version
-- A state is replaced as a whole, so all of it was written by one transaction.
SELECT (SELECT xmin::text FROM {schema}.query_memory WHERE user_id = %(user_id)s LIMIT 1)

-- name: memories_to_search
-- All of them, or the near ones where there are more than is kept. A zero vector has no cosine: its distance is
-- NaN, which is not below anything.
WITH learnt AS MATERIALIZED (
    SELECT count(*) <= %(most)s AS are_few FROM {schema}.query_memory WHERE user_id = %(user_id)s
)
SELECT session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids, likeness, are_few
FROM {schema}.query_memory CROSS JOIN learnt
WHERE user_id = %(user_id)s AND (are_few OR query <=> %(query)b::vector < 1 - %(threshold)s)
ORDER BY created_at, session_id

-- name: vectors_to_search
-- Of what near queries moved.
SELECT object_id, object_no, embedding
FROM {schema}.personal_parts
WHERE user_id = %(user_id)s AND object_no IS NOT NULL AND object_id IN (
    SELECT unnest(moved_ids)
    FROM {schema}.query_memory
    WHERE user_id = %(user_id)s AND query <=> %(query)b::vector < 1 - %(threshold)s
)
ORDER BY object_no, part_no

-- name: vectors_of
SELECT object_id, object_no, embedding
FROM {schema}.personal_parts
WHERE user_id = %(user_id)s AND object_no IS NOT NULL AND object_id = ANY(%(object_ids)s::text[])
ORDER BY object_no, part_no

-- name: memories
SELECT session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids, likeness
FROM {schema}.query_memory
WHERE user_id = %(user_id)s
ORDER BY created_at, session_id

-- name: latest_memories
WITH returning_users AS (
    SELECT user_id, count(*) AS memories, max(created_at) AS latest
    FROM {schema}.query_memory
    GROUP BY user_id
    HAVING count(*) > 1
), numbered AS (
    SELECT user_id, row_number() OVER latest_first AS number,
        sum(memories) OVER latest_first - memories AS told_before
    FROM returning_users
    WINDOW latest_first AS (ORDER BY latest DESC, user_id COLLATE "C" ROWS UNBOUNDED PRECEDING)
)
SELECT number, session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids, likeness
FROM numbered JOIN {schema}.query_memory USING (user_id)
WHERE told_before < %(count)s
ORDER BY number, created_at, session_id COLLATE "C"

-- name: vectors
SELECT object_id, embedding
FROM {schema}.personal_parts
WHERE user_id = %(user_id)s
ORDER BY object_id, part_no

-- name: copies
SELECT object_id, embedding
FROM {schema}.personal_parts
WHERE user_id = %(user_id)s AND object_id = ANY(%(object_ids)s::text[])
ORDER BY object_id, part_no

-- name: object_nos
SELECT object_id, object_no FROM {schema}.objects WHERE object_id = ANY(%(object_ids)s::text[])

-- name: delete_vectors
DELETE FROM {schema}.personal_parts WHERE user_id = ANY(%(user_ids)s::text[])

-- name: delete_memories
DELETE FROM {schema}.query_memory WHERE user_id = ANY(%(user_ids)s::text[])

-- name: copy_vectors
COPY {schema}.personal_parts (user_id, object_id, part_no, embedding, object_no) FROM STDIN (FORMAT BINARY)

-- name: copy_memories
COPY {schema}.query_memory
    (user_id, session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids, likeness)
FROM STDIN (FORMAT BINARY)

-- name: drop_copies
DELETE FROM {schema}.personal_parts WHERE object_id = ANY(%(object_ids)s::text[])

-- name: order_showings
-- What was shown lately stands in a list beside the index, and each of many ids would be looked for in all of it.
SELECT gin_clean_pending_list('embedding_studio.sessions_that_showed')

-- name: users_of
-- The users who were shown these objects, or clicked them, in a session that is learnt from.
SELECT DISTINCT user_id
FROM embedding_studio.sessions_for_improvement
WHERE user_id IS NOT NULL AND collection = ANY(%(collections)s::text[]) AND session_id IN (
    -- Each looked up by itself: of many at once all sessions would be compared with all of them.
    SELECT showing.session_id
    FROM unnest(%(object_ids)s::text[]) AS given(object_id) CROSS JOIN LATERAL (
        SELECT session_id FROM embedding_studio.sessions WHERE shown @> ARRAY[given.object_id]
    ) AS showing
    UNION ALL
    SELECT session_id FROM embedding_studio.session_events WHERE object_id = ANY(%(object_ids)s::text[])
)

-- name: made_of
-- What the copies were made of: copies of another original go in the transaction in which this changes.
SELECT object_id, content_hash FROM {schema}.objects WHERE object_id = ANY(%(object_ids)s::text[])

-- name: not_noticed
-- What is not as it was noticed, and whether it never was.
SELECT given.object_id, o.object_id IS NULL
FROM unnest(%(object_ids)s::text[], %(digests)s::text[]) AS given(object_id, digest)
LEFT JOIN {schema}.objects AS o ON o.object_id = given.object_id
WHERE o.object_id IS NULL OR o.content_hash IS DISTINCT FROM given.digest
ORDER BY given.object_id COLLATE "C"

-- name: notice
INSERT INTO {schema}.objects (object_id, payload, content_hash, object_no)
SELECT object_id, '{{}}', digest, 0
FROM unnest(%(object_ids)s::text[], %(digests)s::text[]) AS given(object_id, digest)
ON CONFLICT (object_id) DO UPDATE SET content_hash = excluded.content_hash

-- name: noticed
SELECT object_id, content_hash
FROM {schema}.objects
WHERE %(after)s::text IS NULL OR object_id > %(after)s::text
ORDER BY object_id
LIMIT %(limit)s
