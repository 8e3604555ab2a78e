-- name: find
-- The table that a name stands for, written as in any statement.
SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, has_table_privilege(c.oid, 'SELECT'), c.reltuples::float8
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%(name)s)

-- name: columns
SELECT attname, t.typname, atttypmod
FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid
WHERE attrelid = %(table)s AND attnum > 0 AND NOT attisdropped
ORDER BY attnum

-- name: is_unique
-- Whether an index holds the column alone, of all rows, and each value once.
SELECT EXISTS (
    SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = %(table)s AND attname = %(column)s
        AND indisunique AND indisvalid AND indimmediate AND indnkeyatts = 1 AND indpred IS NULL
)

-- name: indexes
-- Of vectors, with what they hold as it stands in a statement, and the class of its operators.
SELECT c.relname, am.amname, opcname, pg_get_indexdef(indexrelid, 1, true)
FROM pg_index
JOIN pg_class AS c ON c.oid = indexrelid
JOIN pg_am AS am ON am.oid = c.relam
JOIN pg_opclass AS o ON o.oid = indclass[0]
WHERE indrelid = %(table)s AND am.amname IN ('hnsw', 'ivfflat') AND indisvalid AND indpred IS NULL
ORDER BY am.amname, c.relname

-- name: dimensions
SELECT min({schema}vector_dims({vector})), max({schema}vector_dims({vector})) FROM {table}

-- name: repeated
SELECT {object_id}::text FROM {table} WHERE {object_id} IS NOT NULL GROUP BY {object_id} HAVING count(*) > 1 LIMIT 1

-- name: count
SELECT count(*) FROM {table} WHERE {object_id} IS NOT NULL AND {vector} IS NOT NULL

-- name: get
SELECT t.{object_id}::text, t.{vector}::vector, o.payload
FROM {table} AS t CROSS JOIN LATERAL (SELECT {payload} AS payload) AS o
WHERE t.{object_id} = ANY(%(object_ids)s::text[]::{type}[]) AND t.{vector} IS NOT NULL

-- name: scroll
SELECT t.{object_id}::text, t.{vector}::vector, o.payload
FROM {table} AS t CROSS JOIN LATERAL (SELECT {payload} AS payload) AS o
WHERE t.{object_id} IS NOT NULL AND t.{vector} IS NOT NULL AND {condition}
    AND (%(after)s::text IS NULL OR t.{object_id}::text COLLATE "C" > %(after)s::text COLLATE "C")
ORDER BY t.{object_id}::text COLLATE "C"
LIMIT %(limit)s

-- name: near
SELECT t.{object_id}::text, t.{vector}::vector, o.payload, ({ordered} {operator} {query}) AS distance
FROM {table} AS t CROSS JOIN LATERAL (SELECT {payload} AS payload) AS o
WHERE t.{object_id} IS NOT NULL AND t.{vector} IS NOT NULL AND {condition}
ORDER BY {ordered} {operator} {query}
LIMIT %(limit)s
