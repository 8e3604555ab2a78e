-- What a search showed stands in its session: one row where there were one and a row for each result, each with a key to
-- check. Best first, by position and then by id. positions: absent: from 1 on without a gap; the others: absent: distances
-- unknown, nothing personalised, propensities 1, no meta.
ALTER TABLE embedding_studio.sessions
    ADD COLUMN shown text[] COLLATE "C" NOT NULL DEFAULT '{}',
    ADD COLUMN positions integer[],
    ADD COLUMN distances double precision[],
    ADD COLUMN personalised boolean[],
    ADD COLUMN propensities double precision[],
    ADD COLUMN metas jsonb;

UPDATE embedding_studio.sessions
SET shown = results.shown,
    positions = results.positions,
    distances = results.distances,
    personalised = results.personalised,
    propensities = results.propensities,
    metas = results.metas
FROM (
    SELECT
        session_id,
        array_agg(object_id ORDER BY position, object_id) AS shown,
        CASE
            WHEN (min(position), max(position), count(DISTINCT position)) <> (1, count(*), count(*))
            THEN array_agg(position ORDER BY position, object_id)
        END AS positions,
        CASE WHEN count(distance) > 0 THEN array_agg(distance ORDER BY position, object_id) END AS distances,
        CASE WHEN bool_or(personalised) THEN array_agg(personalised ORDER BY position, object_id) END AS personalised,
        CASE WHEN min(propensity) < 1 THEN array_agg(propensity ORDER BY position, object_id) END AS propensities,
        CASE WHEN count(meta) > 0 THEN jsonb_agg(meta ORDER BY position, object_id) END AS metas
    FROM embedding_studio.session_results
    GROUP BY session_id
) AS results
WHERE results.session_id = sessions.session_id;

DROP TABLE embedding_studio.session_results;

-- What is new stands in a list beside the index. Whoever fills that (kB) writes all of it into the index, and waits for it.
CREATE INDEX sessions_that_showed ON embedding_studio.sessions USING gin (shown) WITH (gin_pending_list_limit = 1024);
