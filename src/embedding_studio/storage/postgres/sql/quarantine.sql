-- name: decide
INSERT INTO embedding_studio.quarantine_decisions AS decided (user_id, is_quarantined, reason, decided_at)
VALUES (%(user_id)s, %(is_quarantined)s, %(reason)s, %(now)s)
ON CONFLICT (user_id) DO UPDATE SET
    is_quarantined = excluded.is_quarantined,
    reason = excluded.reason,
    decided_at = excluded.decided_at

-- name: release
DELETE FROM embedding_studio.quarantined WHERE user_id = %(user_id)s

-- name: decisions
SELECT user_id, is_quarantined, reason, decided_at
FROM embedding_studio.quarantine_decisions
WHERE user_id = ANY(%(user_ids)s::text[])

-- name: list
SELECT user_id, collection, reason, since
FROM (
    SELECT user_id, collections.name AS collection, reason, since
    FROM embedding_studio.quarantined JOIN embedding_studio.collections USING (collection_id)
    UNION ALL
    SELECT user_id, NULL, reason, decided_at
    FROM embedding_studio.quarantine_decisions
    WHERE is_quarantined
) AS told
WHERE %(user_id)s::text IS NULL OR user_id = %(user_id)s
ORDER BY since DESC, user_id, collection COLLATE "C" NULLS FIRST
LIMIT %(limit)s OFFSET %(offset)s

-- name: count
SELECT count(DISTINCT user_id)
FROM (
    SELECT user_id FROM embedding_studio.quarantined
    UNION ALL
    SELECT user_id FROM embedding_studio.quarantine_decisions WHERE is_quarantined
) AS told

-- name: keep
-- What the fold of some users found in one collection; who was found before is since then.
WITH gone AS (
    DELETE FROM embedding_studio.quarantined
    WHERE user_id = ANY(%(user_ids)s::text[])
        AND collection_id = %(collection_id)s
        AND user_id <> ALL(%(found)s::text[])
)
INSERT INTO embedding_studio.quarantined (collection_id, user_id, reason, since)
SELECT %(collection_id)s, user_id, reason, embedding_studio.seconds()::bigint
FROM unnest(%(found)s::text[], %(reasons)s::text[]) AS found(user_id, reason)
ON CONFLICT (user_id, collection_id) DO UPDATE SET reason = excluded.reason

-- name: forget
WITH decided AS (DELETE FROM embedding_studio.quarantine_decisions WHERE user_id = %(user_id)s)
DELETE FROM embedding_studio.quarantined WHERE user_id = %(user_id)s
