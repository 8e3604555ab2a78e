-- name: mark
-- The users of some sessions, and of others that also show something new. Rows of the queue are locked in one order
-- everywhere, and before any order, so that two who want the same do not wait in a circle. Those that stand as they
-- should are locked, too, and not written: a log that is imported brings the same users in each of its batches.
INSERT INTO embedding_studio.queue (collection, user_id, priority, since)
SELECT collection, user_id, max(priority), embedding_studio.seconds()
FROM (
    SELECT collection, user_id, {priority} AS priority
    FROM embedding_studio.sessions AS session
    WHERE session_id = ANY(%(session_ids)s::text[])
    UNION ALL
    SELECT collection, user_id, 0
    FROM embedding_studio.sessions
    WHERE session_id = ANY(%(also)s::text[])
) AS stale
WHERE user_id IS NOT NULL
GROUP BY collection, user_id
ORDER BY collection, user_id
{on_conflict}
WHERE queue.priority < excluded.priority
    OR queue.not_before <> 0
    OR queue.attempts <> 0
    OR queue.is_alone
    OR queue.token IS NOT NULL

-- name: on_conflict
ON CONFLICT (collection, user_id) DO UPDATE SET
    priority = greatest(queue.priority, excluded.priority),
    not_before = 0,
    attempts = 0,
    is_alone = false,
    token = NULL

-- name: mark_learnt
-- The users of some sessions, as far as these have orders.
INSERT INTO embedding_studio.queue (collection, user_id, since)
SELECT collection, user_id, embedding_studio.seconds()
FROM embedding_studio.sessions_for_improvement
WHERE session_id = ANY(%(session_ids)s::text[]) AND user_id IS NOT NULL
GROUP BY collection, user_id
ORDER BY collection, user_id
{on_conflict}

-- name: mark_users
-- Some users, as far as they have orders under these names.
INSERT INTO embedding_studio.queue (collection, user_id, since)
SELECT collection, user_id, embedding_studio.seconds()
FROM embedding_studio.sessions_for_improvement
WHERE user_id = ANY(%(user_ids)s::text[]) AND collection = ANY(%(collections)s::text[])
GROUP BY collection, user_id
ORDER BY collection, user_id
{on_conflict}

-- name: mark_user
-- A user, under each name that they have orders under.
INSERT INTO embedding_studio.queue (collection, user_id, since)
SELECT collection, user_id, embedding_studio.seconds()
FROM embedding_studio.sessions_for_improvement
WHERE user_id = %(user_id)s
GROUP BY collection, user_id
ORDER BY collection, user_id
{on_conflict}

-- name: mark_everyone
WITH marked AS (
    INSERT INTO embedding_studio.queue (collection, user_id, since)
    SELECT collection, user_id, embedding_studio.seconds()
    FROM embedding_studio.sessions_for_improvement
    WHERE user_id IS NOT NULL AND collection = ANY(%(collections)s::text[])
    GROUP BY collection, user_id
    ORDER BY collection, user_id
    {on_conflict}
    RETURNING user_id
)
SELECT count(DISTINCT user_id) FROM marked

-- name: mark_under
-- Those who have orders under one name, under each of several.
INSERT INTO embedding_studio.queue (collection, user_id, since)
SELECT given.name, user_id, embedding_studio.seconds()
FROM (
    SELECT DISTINCT user_id
    FROM embedding_studio.sessions_for_improvement
    WHERE user_id IS NOT NULL AND collection = %(ordered_under)s
) AS ordered
    CROSS JOIN unnest(%(names)s::text[]) AS given(name)
ORDER BY given.name COLLATE "C", user_id
{on_conflict}

-- name: notify
SELECT pg_notify(%(channel)s, '')

-- name: claim
-- What a worker held that ended is claimed alone, so that it ends no worker together with others.
WITH due AS MATERIALIZED (
    SELECT collection, user_id, priority, since, token IS NOT NULL AS was_held
    FROM embedding_studio.queue
    WHERE not_before <= coalesce(%(now)s, embedding_studio.seconds())
    ORDER BY priority DESC, since, collection, user_id
    LIMIT %(users)s
    FOR UPDATE SKIP LOCKED
),
foremost AS (
    SELECT collection, user_id, was_held FROM due ORDER BY priority DESC, since, collection, user_id LIMIT 1
),
chosen AS (
    SELECT collection, user_id, false AS is_alone
    FROM due
    WHERE NOT was_held AND NOT (SELECT was_held FROM foremost)
    UNION ALL
    SELECT collection, user_id, true FROM foremost WHERE was_held
)
UPDATE embedding_studio.queue AS claimed
SET token = %(token)s,
    attempts = attempts + (claimed.token IS NULL OR claimed.is_alone)::int,
    is_alone = chosen.is_alone,
    not_before = coalesce(%(now)s, embedding_studio.seconds()) + %(lease_seconds)s
FROM chosen
WHERE claimed.collection = chosen.collection AND claimed.user_id = chosen.user_id
RETURNING
    claimed.collection,
    claimed.user_id,
    attempts,
    priority,
    since,
    greatest(0, coalesce(%(now)s, embedding_studio.seconds()) - since)

-- name: renew
UPDATE embedding_studio.queue
SET not_before = embedding_studio.seconds() + %(lease_seconds)s
WHERE token = %(token)s

-- name: release
UPDATE embedding_studio.queue
SET token = NULL, not_before = 0, attempts = attempts - 1
WHERE token = %(token)s

-- name: put_off
-- Still as of a worker that ended, so that each is claimed alone.
UPDATE embedding_studio.queue
SET attempts = attempts - is_alone::int,
    not_before = CASE
        WHEN is_alone
        THEN embedding_studio.seconds()
            + least(%(longest_seconds)s, greatest(%(backoff_seconds)s, embedding_studio.seconds() - since))
        ELSE 0
    END
WHERE token = %(token)s

-- name: held
-- Under each name of the collection, also what is not ours: ``release_others`` changes that.
SELECT collection, user_id, attempts, token IS NOT DISTINCT FROM %(token)s
FROM embedding_studio.queue
WHERE user_id = ANY(%(user_ids)s::text[]) AND collection = ANY(%(collections)s::text[])
ORDER BY collection, user_id
FOR UPDATE

-- name: learnt
-- What became of sessions that were looked at, where it is something new.
UPDATE embedding_studio.sessions_for_improvement AS ended
SET status = outcome.status,
    detail = left(outcome.detail, %(detail_length)s),
    attempts = greatest(ended.attempts, held.attempts),
    updated_at = embedding_studio.seconds()
FROM unnest(%(session_ids)s::text[], %(statuses)s::text[], %(details)s::text[])
        AS outcome(session_id, status, detail)
    CROSS JOIN unnest(%(held_users)s::text[], %(held_attempts)s::int[]) AS held(user_id, attempts)
WHERE ended.session_id = outcome.session_id
    AND ended.user_id = held.user_id
    AND (ended.status, ended.detail) IS DISTINCT FROM (outcome.status, left(outcome.detail, %(detail_length)s))
RETURNING ended.session_id, ended.status, ended.detail

-- name: passed_over
-- What was not looked at: it does not count, or no longer.
UPDATE embedding_studio.sessions_for_improvement AS ended
SET status = 'refused',
    detail = CASE
        WHEN session.is_irrelevant THEN %(irrelevant)s
        WHEN NOT EXISTS (
            SELECT FROM embedding_studio.session_events AS event WHERE event.session_id = ended.session_id
        ) THEN %(no_events)s
        ELSE %(too_old)s
    END,
    attempts = held.attempts,
    updated_at = embedding_studio.seconds()
FROM unnest(%(held_users)s::text[], %(held_attempts)s::int[]) AS held(user_id, attempts),
    embedding_studio.sessions AS session
WHERE ended.user_id = held.user_id
    AND ended.collection = ANY(%(collections)s::text[])
    AND ended.status = 'pending'
    AND ended.session_id <> ALL(%(looked_at)s::text[])
    AND session.session_id = ended.session_id
RETURNING ended.session_id, ended.status, ended.detail

-- name: newly_failed
SELECT session_id
FROM embedding_studio.sessions_for_improvement
WHERE session_id = ANY(%(failed)s::text[]) AND user_id = ANY(%(held_users)s::text[]) AND status <> 'failed'

-- name: ended
DELETE FROM embedding_studio.queue AS entry
USING unnest(%(held_collections)s::text[], %(held_entries)s::text[]) AS held(collection, user_id)
WHERE entry.collection = held.collection
    AND entry.user_id = held.user_id
    AND entry.token = %(token)s
    AND NOT EXISTS (
        SELECT
        FROM embedding_studio.sessions_for_improvement AS failed
        WHERE failed.session_id = ANY(%(failed)s::text[])
            AND failed.user_id = entry.user_id
            AND failed.status <> 'failed'
    )

-- name: release_others
-- Who holds one of these users under another name of the collection may have read less.
UPDATE embedding_studio.queue
SET token = NULL, not_before = 0, attempts = attempts - 1
WHERE user_id = ANY(%(held_users)s::text[])
    AND collection = ANY(%(collections)s::text[])
    AND token <> %(token)s

-- name: end_orders
-- All that are pending, or those that are named.
UPDATE embedding_studio.sessions_for_improvement AS ended
SET status = %(status)s,
    detail = left(coalesce(named.detail, %(detail)s::text), %(detail_length)s),
    attempts = %(attempts)s,
    updated_at = embedding_studio.seconds()
FROM (
    SELECT session_id, NULL::text AS detail
    FROM embedding_studio.sessions_for_improvement
    WHERE user_id = %(user_id)s AND collection = %(collection)s AND status = 'pending' AND %(session_ids)s::text[] IS NULL
    UNION ALL
    SELECT * FROM unnest(%(session_ids)s::text[], %(details)s::text[])
) AS named
WHERE ended.session_id = named.session_id AND ended.user_id = %(user_id)s
RETURNING ended.session_id

-- name: end_entry
DELETE FROM embedding_studio.queue
WHERE collection = %(collection)s AND user_id = %(user_id)s AND token = %(token)s

-- name: give_back
UPDATE embedding_studio.queue
SET token = NULL,
    attempts = attempts - %(is_outage)s::int,
    not_before = embedding_studio.seconds() + CASE
        WHEN %(is_outage)s
        THEN least(%(longest_seconds)s, greatest(%(backoff_seconds)s, embedding_studio.seconds() - since))
        ELSE %(backoff_seconds)s * 2.0 ^ (attempts - 1)
    END
WHERE collection = %(collection)s AND user_id = %(user_id)s AND token = %(token)s

-- name: queue_info
SELECT
    count(*) FILTER (WHERE token IS NULL),
    count(*) FILTER (WHERE token IS NOT NULL),
    greatest(0, coalesce(embedding_studio.seconds() - min(since), 0)),
    greatest(
        count(DISTINCT token) FILTER (WHERE not_before > embedding_studio.seconds()),
        (
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = %(worker)s
        )
    )
FROM embedding_studio.queue

-- name: something_is_due
SELECT EXISTS (SELECT FROM embedding_studio.queue WHERE not_before <= embedding_studio.seconds())

-- name: listen
LISTEN {channel}
