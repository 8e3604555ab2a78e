-- name: insert_sessions
-- Those that are new and whose collection exists; in one order, so that two who bring the same do not wait in a circle.
-- Where it is all that is done (is_all), not those for which events wait.
INSERT INTO embedding_studio.sessions
    (session_id, user_id, search_query, collection, created_at, is_irrelevant, search_meta, request, pages,
     query_vectors, query_dimensions, shown, positions, distances, personalised, propensities, metas, sender)
SELECT *
FROM json_to_recordset(%(sessions)s::json) AS given(
    session_id text, user_id text, search_query text, collection text, created_at bigint, is_irrelevant boolean,
    search_meta jsonb, request jsonb, pages jsonb, query_vectors bytea, query_dimensions int,
    shown text[], positions int[], distances float8[], personalised boolean[], propensities float8[], metas jsonb,
    sender text
)
WHERE (
        EXISTS (SELECT FROM embedding_studio.collections WHERE name = given.collection)
        OR EXISTS (SELECT FROM embedding_studio.collection_aliases WHERE alias = given.collection)
    )
    AND NOT CASE
        WHEN %(is_all)s THEN embedding_studio.is_awaited(%(lock_class)s, given.session_id)
        ELSE false
    END
ORDER BY session_id COLLATE "C"
ON CONFLICT (session_id) DO NOTHING
RETURNING session_id

-- name: get_sessions
SELECT
    session_id, search_query, user_id, created_at, collection, search_meta, request, pages, is_irrelevant,
    shown, positions, distances, personalised, propensities, metas
FROM embedding_studio.sessions
WHERE session_id = ANY(%(session_ids)s::text[])

-- name: owners
SELECT session_id, user_id, collection
FROM embedding_studio.sessions
WHERE session_id = ANY(%(session_ids)s::text[])

-- name: lock_sessions
-- Who pushes events to one of these waits for the commit: so an order is seen, or placed after what is done here.
SELECT session_id
FROM embedding_studio.sessions
WHERE session_id = ANY(%(session_ids)s::text[])
ORDER BY session_id
FOR UPDATE

-- name: events
SELECT session_id, object_id, event_type, created_at, event_id, meta
FROM embedding_studio.session_events
WHERE session_id = ANY(%(session_ids)s::text[])
ORDER BY session_id, created_at, event_id

-- name: show
UPDATE embedding_studio.sessions AS session
SET shown = given.shown,
    positions = given.positions,
    distances = given.distances,
    personalised = given.personalised,
    propensities = given.propensities,
    metas = given.metas,
    pages = given.pages
FROM json_to_recordset(%(shown)s::json) AS given(
    session_id text, shown text[], positions int[], distances float8[], personalised boolean[], propensities float8[],
    metas jsonb, pages jsonb
)
WHERE session.session_id = given.session_id

-- name: push
-- Events of different ids. One row an event, in order, with what was stored under its id before. The sessions are locked
-- against being forgotten meanwhile.
WITH given AS MATERIALIZED (
    SELECT *
    FROM unnest(
        %(session_ids)s::text[], %(event_ids)s::text[], %(object_ids)s::text[], %(event_types)s::text[],
        %(created_ats)s::bigint[], %(metas)s::text[]
    ) WITH ORDINALITY AS event(session_id, event_id, object_id, event_type, created_at, meta, ordinal)
),
known AS MATERIALIZED (
    SELECT session_id, created_at, shown, cardinality(shown) = 0 AS shows_nothing
    FROM embedding_studio.sessions
    WHERE session_id = ANY(%(known_ids)s::text[])
    ORDER BY session_id
    FOR KEY SHARE
),
listed AS (
    SELECT session_id, object_id FROM known CROSS JOIN unnest(shown) AS object_id
),
added AS (
    INSERT INTO embedding_studio.session_events
        (session_id, event_id, object_id, event_type, created_at, meta)
    SELECT session_id, event_id, object_id, event_type, given.created_at, nullif(meta, '')::jsonb
    FROM given JOIN known USING (session_id)
    ORDER BY session_id, event_id COLLATE "C"
    ON CONFLICT (session_id, event_id) DO NOTHING
    RETURNING session_id, event_id
)
SELECT
    known.session_id IS NOT NULL,
    added.session_id IS NOT NULL,
    known.shows_nothing OR (given.session_id, given.object_id) IN (SELECT session_id, object_id FROM listed),
    known.created_at,
    CASE
        WHEN added.session_id IS NULL
        THEN (
            SELECT ARRAY[object_id, event_type]
            FROM embedding_studio.session_events
            WHERE session_id = given.session_id AND event_id = given.event_id
        )
    END
FROM given
    LEFT JOIN known ON known.session_id = given.session_id
    LEFT JOIN added ON added.session_id = given.session_id AND added.event_id = given.event_id
ORDER BY ordinal

-- name: lock_ids
-- Of sessions that may not be there. In one order, and few, however many the sessions: locks take room.
SELECT pg_advisory_xact_lock(%(lock_class)s, key)
FROM (
    SELECT DISTINCT hashtext(session_id) & 63 AS key
    FROM unnest(%(session_ids)s::text[]) AS given(session_id)
    ORDER BY key
) AS ordered

-- name: share_ids
-- As lock_ids, with others; is_awaited does so for one.
SELECT pg_advisory_xact_lock_shared(%(lock_class)s, key)
FROM (
    SELECT DISTINCT hashtext(session_id) & 63 AS key
    FROM unnest(%(session_ids)s::text[]) AS given(session_id)
    ORDER BY key
) AS ordered

-- name: waiting
-- What waits for some sessions already.
SELECT session_id, event_id, object_id, event_type
FROM embedding_studio.waiting_events
WHERE session_id = ANY(%(session_ids)s::text[])

-- name: count_waiting
SELECT count(*), count(*) FILTER (WHERE sender = %(sender)s) FROM embedding_studio.waiting_events

-- name: let_wait
INSERT INTO embedding_studio.waiting_events (session_id, event_id, object_id, event_type, created_at, meta, sender)
SELECT *, %(sender)s
FROM json_to_recordset(%(events)s::json) AS event(
    session_id text, event_id text, object_id text, event_type text, created_at bigint, meta jsonb
)

-- name: join_waiting
-- Who waits for a session is recorded with it.
WITH joined AS (
    DELETE FROM embedding_studio.waiting_events
    WHERE session_id = ANY(%(session_ids)s::text[])
    RETURNING session_id, object_id, event_type, created_at, event_id, meta
)
SELECT * FROM joined ORDER BY session_id, created_at, event_id

-- name: drop_waiting
-- Two who do so at once do not wait for each other.
DELETE FROM embedding_studio.waiting_events
WHERE (session_id, event_id) IN (
    SELECT session_id, event_id
    FROM embedding_studio.waiting_events
    WHERE arrived_at <= coalesce(%(now)s, embedding_studio.seconds()) - %(seconds)s
    FOR UPDATE SKIP LOCKED
)

-- name: recent_sessions
SELECT
    session.session_id, search_query, session.user_id, created_at, collection, search_meta, request,
    pages, is_irrelevant, shown, positions, distances, personalised, propensities, metas, sender, query_vectors,
    query_dimensions
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

-- name: latest_times
SELECT session.user_id, created_at
FROM unnest(%(user_ids)s::text[]) AS given(user_id)
    CROSS JOIN LATERAL (
        SELECT session.user_id, created_at
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

-- name: store_query_vectors
WITH locked AS MATERIALIZED (
    SELECT session_id
    FROM embedding_studio.sessions
    WHERE session_id = ANY(%(session_ids)s::text[])
    ORDER BY session_id
    FOR NO KEY UPDATE
)
UPDATE embedding_studio.sessions AS session
SET query_vectors = given.query_vectors, query_dimensions = given.query_dimensions
FROM unnest(%(session_ids)s::text[], %(query_vectors)s::bytea[], %(query_dimensions)s::int[])
        AS given(session_id, query_vectors, query_dimensions)
    JOIN locked USING (session_id)
WHERE session.session_id = given.session_id

-- name: scan
SELECT
    session_id, search_query, user_id, created_at, collection, search_meta, request, pages, is_irrelevant,
    shown, positions, distances, personalised, propensities, metas, sender, query_vectors, query_dimensions
FROM embedding_studio.sessions
WHERE (created_at, session_id) > (%(after_at)s, %(after_id)s)
    AND created_at < %(until)s
    AND (%(collections)s::text[] IS NULL OR collection = ANY(%(collections)s::text[]))
    AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s::text)
ORDER BY created_at, session_id
LIMIT %(limit)s

-- name: latest
SELECT
    session_id, search_query, user_id, created_at, collection, search_meta, request, pages, is_irrelevant,
    shown, positions, distances, personalised, propensities, metas
FROM embedding_studio.sessions
WHERE (created_at, session_id) < (%(before_at)s, %(before_id)s)
    AND (%(collections)s::text[] IS NULL OR collection = ANY(%(collections)s::text[]))
    AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s::text)
ORDER BY created_at DESC, session_id DESC
LIMIT %(limit)s

-- name: recent_queries
SELECT query_vectors, query_dimensions
FROM (
    SELECT DISTINCT ON (search_query, wordless) session_id
    FROM (
        SELECT
            session_id,
            created_at,
            search_query,
            CASE WHEN search_query = '' THEN sha256(query_vectors) END AS wordless
        FROM embedding_studio.sessions
        WHERE collection = ANY(%(collections)s::text[])
            AND query_dimensions = %(dimensions)s
            AND NOT is_irrelevant
            AND (
                user_id IS NULL
                OR user_id NOT IN (
                    SELECT quarantined.user_id
                    FROM embedding_studio.quarantined
                    WHERE collection_id = %(collection_id)s
                    UNION ALL
                    SELECT decided.user_id
                    FROM embedding_studio.quarantine_decisions AS decided
                    WHERE decided.is_quarantined
                )
            )
    ) AS asked
    ORDER BY search_query, wordless, created_at DESC, session_id DESC
) AS latest
    JOIN embedding_studio.sessions USING (session_id)
ORDER BY created_at DESC, session_id DESC
LIMIT %(limit)s

-- name: drop_waiting_of
DELETE FROM embedding_studio.waiting_events
WHERE session_id = %(session_id)s AND object_id = %(object_id)s

-- name: take_back
UPDATE embedding_studio.session_events
SET event_type = %(taken_back)s
WHERE session_id = %(session_id)s AND object_id = %(object_id)s AND event_type <> %(taken_back)s

-- name: mark_irrelevant
UPDATE embedding_studio.sessions SET is_irrelevant = true WHERE session_id = ANY(%(session_ids)s::text[])

-- name: lock_of_sender
-- A page of those that count.
SELECT session_id
FROM embedding_studio.sessions
WHERE sender = %(sender)s AND NOT is_irrelevant AND session_id > %(after)s
ORDER BY session_id
LIMIT %(limit)s
FOR UPDATE

-- name: ordered
-- Those of some sessions that have orders.
SELECT session_id FROM embedding_studio.sessions_for_improvement WHERE session_id = ANY(%(session_ids)s::text[])

-- name: lock_users
-- In one order, so that two who want the same users wait for each other and not in a circle.
SELECT pg_advisory_xact_lock(%(lock_class)s, key)
FROM (SELECT DISTINCT hashtext(user_id) AS key FROM unnest(%(user_ids)s::text[]) AS given(user_id) ORDER BY key)
    AS ordered

-- name: lock_oldest
-- No lock is waited for: what is written to just now goes another time.
SELECT session_id
FROM embedding_studio.sessions
WHERE created_at < %(before)s
ORDER BY created_at, session_id
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED

-- name: count_events
SELECT count(*) FROM embedding_studio.session_events WHERE session_id = ANY(%(session_ids)s::text[])

-- name: remove_sessions
DELETE FROM embedding_studio.sessions WHERE session_id = ANY(%(session_ids)s::text[])

-- name: lock_sessions_of_user
-- So that nothing is added to what is counted.
SELECT FROM embedding_studio.sessions WHERE user_id = %(user_id)s ORDER BY session_id FOR UPDATE

-- name: tables_of_users
-- With a row for each user, or else for each session.
SELECT nspname, relname, bool_or(attname = 'user_id')
FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = ANY(%(schemas)s::text[])
    AND relkind IN ('r', 'p')
    AND NOT relispartition
    AND attname IN ('user_id', 'session_id')
    AND NOT attisdropped
GROUP BY nspname, relname
ORDER BY relname, nspname

-- name: count_of_user
SELECT count(*) FROM {table} WHERE user_id = %(user_id)s

-- name: count_of_sessions
SELECT count(*)
FROM {table} JOIN embedding_studio.sessions USING (session_id)
WHERE sessions.user_id = %(user_id)s

-- name: forget_entries
DELETE FROM embedding_studio.queue WHERE user_id = %(user_id)s

-- name: forget_sessions
DELETE FROM embedding_studio.sessions WHERE user_id = %(user_id)s

-- name: forget_state
WITH vectors AS (DELETE FROM {schema}.personal_parts WHERE user_id = %(user_id)s)
DELETE FROM {schema}.query_memory WHERE user_id = %(user_id)s
