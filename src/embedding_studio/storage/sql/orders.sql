-- name: place
INSERT INTO embedding_studio.sessions_for_improvement AS placed
    (session_id, user_id, collection, priority, created_at, updated_at)
SELECT
    session_id,
    user_id,
    collection,
    EXISTS (
        SELECT
        FROM embedding_studio.session_events AS event
            JOIN embedding_studio.session_results AS result USING (session_id, object_id)
        WHERE event.session_id = session.session_id
            AND event.event_type = ANY(%(clicks)s::text[])
            AND result.position > 3
    )::int,
    embedding_studio.seconds(),
    embedding_studio.seconds()
FROM embedding_studio.sessions AS session
WHERE session_id = ANY(%(session_ids)s::text[])
ORDER BY session_id
ON CONFLICT (session_id) DO UPDATE SET
    status = 'pending',
    priority = excluded.priority,
    attempts = 0,
    detail = NULL,
    updated_at = excluded.updated_at,
    not_before = 0,
    token = NULL
RETURNING
    session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at, not_before,
    pg_notify(%(channel)s, '')

-- name: latest_of_users
-- Of each user the latest session under some names that has an order: placing it folds the user anew.
SELECT DISTINCT ON (session.user_id) session_id
FROM embedding_studio.sessions AS session
    JOIN embedding_studio.sessions_for_improvement AS placed USING (session_id)
WHERE session.user_id = ANY(%(user_ids)s::text[]) AND session.collection = ANY(%(collections)s::text[])
ORDER BY session.user_id, session.created_at DESC, session_id DESC

-- name: latest_of_all_users
SELECT DISTINCT ON (session.user_id) session_id
FROM embedding_studio.sessions AS session
    JOIN embedding_studio.sessions_for_improvement AS placed USING (session_id)
WHERE session.user_id IS NOT NULL AND session.collection = ANY(%(collections)s::text[])
ORDER BY session.user_id, session.created_at DESC, session_id DESC

-- name: get
SELECT session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at, not_before
FROM embedding_studio.sessions_for_improvement
WHERE session_id = %(session_id)s

-- name: list
SELECT session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at, not_before
FROM embedding_studio.sessions_for_improvement
WHERE %(status)s::text IS NULL OR status = %(status)s
ORDER BY updated_at DESC, session_id
LIMIT %(limit)s OFFSET %(offset)s

-- name: counts
SELECT status, count(*) FROM embedding_studio.sessions_for_improvement GROUP BY status

-- name: cancel
DELETE FROM embedding_studio.sessions_for_improvement
WHERE session_id = %(session_id)s AND status IN ('pending', 'failed', 'refused')

-- name: claim
-- The advisory lock keeps two workers from sharing one user's orders. Who reads before another commits may
-- get the lock after it: the row locks look again at what is due, and nothing is left of such a unit.
WITH due AS MATERIALIZED (
    SELECT unit, row_number() OVER (ORDER BY priority DESC, created_at, session_id) AS turn
    FROM (
        SELECT *
        FROM embedding_studio.sessions_for_improvement
        WHERE status IN ('pending', 'processing')
            AND not_before <= coalesce(%(now)s, embedding_studio.seconds())
            AND unit <> ALL(%(passed_over)s::text[])
        ORDER BY priority DESC, created_at, session_id
        LIMIT %(window)s
    ) AS foremost
),
units AS MATERIALIZED (
    SELECT unit FROM due GROUP BY unit ORDER BY min(turn)
),
held AS MATERIALIZED (
    SELECT unit
    FROM units
    WHERE pg_try_advisory_xact_lock(%(lock_class)s, hashtext(unit))
    LIMIT %(users)s
),
locked AS MATERIALIZED (
    SELECT session_id
    FROM embedding_studio.sessions_for_improvement
    WHERE unit IN (SELECT unit FROM held)
        AND status IN ('pending', 'processing')
        AND not_before <= coalesce(%(now)s, embedding_studio.seconds())
    FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE embedding_studio.sessions_for_improvement AS claimed
    SET status = 'processing',
        token = %(token)s,
        attempts = attempts + 1,
        updated_at = embedding_studio.seconds(),
        not_before = coalesce(%(now)s, embedding_studio.seconds()) + %(lease_seconds)s
    FROM locked
    WHERE claimed.session_id = locked.session_id
    RETURNING
        claimed.session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at,
        not_before
)
SELECT (SELECT count(*) FROM due), (SELECT array_agg(unit) FROM held), claimed.*
FROM (SELECT) AS always LEFT JOIN claimed ON true
ORDER BY priority DESC, created_at, session_id

-- name: hold
-- Rows are locked in one order everywhere, so that two who want the same do not wait in a circle.
SELECT session_id
FROM embedding_studio.sessions_for_improvement
WHERE session_id = ANY(%(session_ids)s::text[]) AND token = %(token)s
ORDER BY session_id
FOR UPDATE

-- name: complete
UPDATE embedding_studio.sessions_for_improvement AS completed
SET status = outcome.status,
    detail = left(outcome.detail, %(detail_length)s),
    updated_at = embedding_studio.seconds(),
    token = NULL
FROM unnest(%(session_ids)s::text[], %(statuses)s::text[], %(details)s::text[])
    AS outcome(session_id, status, detail)
WHERE completed.session_id = outcome.session_id AND completed.token = %(token)s

-- name: fail
UPDATE embedding_studio.sessions_for_improvement
SET status = CASE WHEN attempts >= %(max_attempts)s THEN 'failed' ELSE 'pending' END,
    detail = left(%(detail)s, %(detail_length)s),
    updated_at = embedding_studio.seconds(),
    not_before = embedding_studio.seconds() + %(backoff_seconds)s * 2.0 ^ (attempts - 1),
    token = NULL
WHERE session_id = ANY(%(session_ids)s::text[]) AND token = %(token)s

-- name: something_is_due
SELECT EXISTS (
    SELECT
    FROM embedding_studio.sessions_for_improvement
    WHERE status IN ('pending', 'processing') AND not_before <= embedding_studio.seconds()
)

-- name: listen
LISTEN {channel}
