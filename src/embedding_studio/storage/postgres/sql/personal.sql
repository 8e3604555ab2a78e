-- name: active_memories
-- A zero vector has no cosine: its distance is NaN, which is not below anything.
SELECT session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids
FROM {schema}.query_memory
WHERE user_id = %(user_id)s AND query <=> %(query)b::vector < 1 - %(threshold)s
ORDER BY created_at, session_id

-- name: memories
SELECT session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids
FROM {schema}.query_memory
WHERE user_id = %(user_id)s
ORDER BY created_at, session_id

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

-- name: recent_sessions
SELECT
    session.session_id, search_query, session.user_id, created_at, collection, search_meta, request,
    is_irrelevant, query_vectors, query_dimensions
FROM unnest(%(user_ids)s::text[]) AS given(user_id)
    CROSS JOIN LATERAL (
        SELECT *
        FROM embedding_studio.sessions AS session
        WHERE session.user_id = given.user_id
            AND collection = ANY(%(collections)s::text[])
            AND NOT is_irrelevant
            AND EXISTS (
                SELECT
                FROM embedding_studio.sessions_for_improvement AS placed
                WHERE placed.session_id = session.session_id AND placed.status <> 'failed'
            )
            AND EXISTS (
                SELECT
                FROM embedding_studio.session_events AS event
                WHERE event.session_id = session.session_id
            )
        ORDER BY created_at DESC, session_id DESC
        LIMIT %(limit_per_user)s
    ) AS session
ORDER BY session.user_id, created_at, session_id

-- name: originals
SELECT object_id, embedding
FROM {schema}.parts
WHERE object_id = ANY(%(object_ids)s::text[]) AND NOT is_average
ORDER BY object_id, part_no

-- name: store_query_vectors
UPDATE embedding_studio.sessions AS session
SET query_vectors = given.query_vectors, query_dimensions = given.query_dimensions
FROM unnest(%(session_ids)s::text[], %(query_vectors)s::bytea[], %(query_dimensions)s::int[])
    AS given(session_id, query_vectors, query_dimensions)
WHERE session.session_id = given.session_id

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
    (user_id, session_id, search_query, created_at, query, clicked_mean, clicked_ids, moved_ids)
FROM STDIN (FORMAT BINARY)
