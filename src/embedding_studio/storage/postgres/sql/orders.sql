-- name: hold_session
-- Against being forgotten until the order that is placed next is there.
SELECT FROM embedding_studio.sessions WHERE session_id = %(session_id)s FOR KEY SHARE

-- name: place
-- Nothing is learnt from a session without a user.
INSERT INTO embedding_studio.sessions_for_improvement AS placed
    (session_id, user_id, collection, status, detail, priority, created_at, updated_at)
SELECT
    session_id,
    user_id,
    collection,
    CASE WHEN user_id IS NULL THEN 'refused' ELSE 'pending' END,
    CASE WHEN user_id IS NULL THEN %(anonymous)s END,
    {priority},
    embedding_studio.seconds(),
    embedding_studio.seconds()
FROM embedding_studio.sessions AS session
WHERE session_id = ANY(%(session_ids)s::text[])
ORDER BY session_id
ON CONFLICT (session_id) DO UPDATE SET
    status = excluded.status,
    priority = excluded.priority,
    attempts = 0,
    detail = excluded.detail,
    updated_at = excluded.updated_at
RETURNING session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at, 0.0::float8

-- name: priority
-- A click below the third position says more. Not EXISTS, which may be planned as a hash of all events that there are.
-- CASE, so that what was shown is hashed: a join of it may compare each click with each result.
coalesce((
    SELECT 1
    FROM embedding_studio.session_events AS event
    WHERE event.session_id = session.session_id
        AND event.event_type = ANY(%(clicks)s::text[])
        AND CASE WHEN event.object_id IN (
            SELECT object_id
            FROM unnest(session.shown, session.positions) WITH ORDINALITY AS result(object_id, position, place)
            WHERE coalesce(position, place) > 3
        ) THEN true ELSE false END
    LIMIT 1
), 0)

-- name: told
-- An order as it is shown: of a pending one, its user's row in the queue says whether it is in hand.
SELECT
    session_id,
    user_id,
    collection,
    CASE WHEN placed.status = 'pending' AND entry.token IS NOT NULL THEN 'processing' ELSE placed.status END AS status,
    placed.priority,
    CASE placed.status WHEN 'pending' THEN coalesce(entry.attempts, 0) ELSE placed.attempts END AS attempts,
    detail,
    created_at,
    updated_at,
    CASE placed.status WHEN 'pending' THEN coalesce(entry.not_before, 0) ELSE 0 END AS not_before
FROM embedding_studio.sessions_for_improvement AS placed
    LEFT JOIN embedding_studio.queue AS entry USING (collection, user_id)

-- name: get
SELECT * FROM ({told}) AS told WHERE session_id = %(session_id)s

-- name: of
SELECT * FROM ({told}) AS told WHERE session_id = ANY(%(session_ids)s::text[])

-- name: list
SELECT *
FROM ({told}) AS told
WHERE %(status)s::text IS NULL OR status = %(status)s
ORDER BY updated_at DESC, session_id
LIMIT %(limit)s OFFSET %(offset)s

-- name: counts
-- From sums that triggers keep (migration 0007), and from the users in hand, whose pending orders are reported as processing.
SELECT
    coalesce(sum(pending), 0)::bigint - in_hand.orders,
    in_hand.orders,
    coalesce(sum(done), 0)::bigint,
    coalesce(sum(failed), 0)::bigint,
    coalesce(sum(refused), 0)::bigint
FROM (
    SELECT coalesce(sum((
        SELECT count(*)
        FROM embedding_studio.sessions_for_improvement AS placed
        WHERE placed.user_id = entry.user_id AND placed.collection = entry.collection AND placed.status = 'pending'
    )), 0)::bigint AS orders
    FROM embedding_studio.queue AS entry
    WHERE entry.token IS NOT NULL
) AS in_hand
    LEFT JOIN embedding_studio.order_counts ON true
GROUP BY in_hand.orders

-- name: cancel
DELETE FROM embedding_studio.sessions_for_improvement
WHERE session_id = %(session_id)s AND status IN ('pending', 'failed', 'refused')
