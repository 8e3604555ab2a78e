-- name: revision
SELECT revision, epoch, margin FROM {schema}.revision

-- name: centre
SELECT centre FROM {schema}.revision

-- name: changes
SELECT object_nos, codes, removed
FROM {schema}.codes
WHERE revision > (SELECT CASE epoch WHEN %(epoch)s THEN %(revision)s ELSE -1 END FROM {schema}.revision)
ORDER BY block

-- name: advance
-- Give out object numbers, and let every process know that something has changed.
UPDATE {schema}.revision
SET revision = revision + 1, object_no = object_no + %(count)s
RETURNING revision, epoch, object_no, centre

-- name: add
WITH counted AS (
    UPDATE {schema}.revision
    SET added = added + %(added)s, removed = removed + %(gone)s, blocks = blocks + 1
)
INSERT INTO {schema}.codes (revision, object_nos, codes, removed)
VALUES (%(revision)s, %(object_nos)b, %(codes)b, %(removed)b)

-- name: is_large
SELECT count(*) = %(large)s
FROM (SELECT FROM {schema}.parts WHERE is_average = %(is_average)s LIMIT %(large)s) AS counted

-- name: sizes
SELECT epoch, centre, encoded, added, removed, blocks FROM {schema}.revision

-- name: all_blocks
SELECT object_nos, codes, removed FROM {schema}.codes ORDER BY block

-- name: count_parts
SELECT count(*) FROM {schema}.parts WHERE is_average = {is_average}

-- name: some_parts
COPY (
    SELECT object_no, embedding
    FROM {schema}.parts TABLESAMPLE BERNOULLI ({percent}) REPEATABLE (1)
    WHERE is_average = {is_average}
    ORDER BY object_no, part_no
) TO STDOUT (FORMAT binary)

-- name: all_parts
COPY (
    SELECT object_no, embedding FROM {schema}.parts WHERE is_average = {is_average} ORDER BY object_no, part_no
) TO STDOUT (FORMAT binary)

-- name: clear
DELETE FROM {schema}.codes

-- name: begin_epoch
UPDATE {schema}.revision
SET epoch = epoch + 1, centre = %(centre)b, encoded = %(encoded)s, added = 0, removed = 0, blocks = 0

-- name: keep_centre
UPDATE {schema}.revision SET encoded = %(encoded)s

-- name: set_margin
UPDATE {schema}.revision SET margin = %(margin)s, revision = revision + 1

-- name: has_no_statistics
-- A row if so, and there is enough for it to matter.
SELECT
FROM pg_class
WHERE oid = '{schema}.parts'::regclass AND reltuples < 0 AND pg_relation_size(oid) > 1000000

-- name: analyze
-- But of embeddings, of which nothing is estimated.
ANALYZE {schema}.objects, {schema}.parts (object_id, part_no, is_average, object_no)
