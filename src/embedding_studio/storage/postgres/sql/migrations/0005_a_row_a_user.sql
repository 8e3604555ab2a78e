-- Whose state is stale: a row a user, under each name that their sessions were recorded for. It goes when the user is
-- learnt. A claim is a lease: token and not_before, up to which nobody else claims it. not_before without a token: when
-- the backoff ends. attempts: claims since it was last marked; one that ended with its worker counts only if this user
-- was alone in hand (is_alone), for else it may have been the fault of another.
CREATE TABLE embedding_studio.folds (
    collection text COLLATE "C",
    user_id text COLLATE "C",
    priority integer NOT NULL DEFAULT 0,
    since double precision NOT NULL,
    not_before double precision NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    is_alone boolean NOT NULL DEFAULT false,
    token text,
    PRIMARY KEY (collection, user_id)
);
CREATE INDEX folds_to_claim ON embedding_studio.folds (priority DESC, since, collection, user_id);

INSERT INTO embedding_studio.folds (collection, user_id, priority, since)
SELECT collection, user_id, max(priority), min(created_at)
FROM embedding_studio.sessions_for_improvement
WHERE status IN ('pending', 'processing') AND user_id IS NOT NULL
GROUP BY collection, user_id;

-- An order is what became of a session. Whether somebody is learning from it is told by the row of its user.
UPDATE embedding_studio.sessions_for_improvement
SET status = 'refused',
    detail = 'the session is anonymous: there is no user whose results could change',
    token = NULL
WHERE status IN ('pending', 'processing') AND user_id IS NULL;
UPDATE embedding_studio.sessions_for_improvement SET status = 'pending', token = NULL WHERE status = 'processing';
DROP INDEX embedding_studio.orders_to_claim;
DROP INDEX embedding_studio.orders_of_unit;
ALTER TABLE embedding_studio.sessions_for_improvement
    DROP COLUMN unit,
    DROP COLUMN token,
    DROP COLUMN not_before,
    DROP CONSTRAINT sessions_for_improvement_status_check,
    ADD CHECK (status IN ('pending', 'done', 'failed', 'refused'));
CREATE INDEX orders_pending ON embedding_studio.sessions_for_improvement (user_id, collection)
    WHERE status = 'pending';
CREATE INDEX orders_of_user ON embedding_studio.sessions_for_improvement (user_id, collection);
