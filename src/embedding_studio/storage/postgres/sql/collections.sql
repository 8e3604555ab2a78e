-- name: lock_names
SELECT pg_advisory_xact_lock(%(lock_class)s, 0)

-- name: lock_exclusively
SELECT pg_advisory_xact_lock(%(lock_class)s, %(collection_id)s::int)

-- name: lock_shared
SELECT pg_advisory_xact_lock_shared(%(lock_class)s, %(collection_id)s::int)

-- name: insert
INSERT INTO embedding_studio.collections (name, index_info, embedder, gate_threshold, attached, filled)
VALUES (%(name)s, %(index_info)s, %(embedder)s, %(gate_threshold)s, %(attached)s, %(filled)s)
RETURNING collection_id

-- name: get
SELECT collection_id, name, index_info, embedder, gate_threshold, own_past, hashed_as, attached, filled, xmin::text
FROM embedding_studio.collections
WHERE name = %(name)s
UNION ALL
SELECT collection_id, name, index_info, embedder, gate_threshold, own_past, hashed_as, attached, filled, c.xmin::text
FROM embedding_studio.collection_aliases JOIN embedding_studio.collections AS c USING (collection_id)
WHERE alias = %(name)s

-- name: version
-- Of what a name stands for: its number, which is given once, and the transaction that wrote it last.
SELECT collection_id || ' ' || xmin::text
FROM embedding_studio.collections
WHERE name = %(name)s
UNION ALL
SELECT collection_id || ' ' || c.xmin::text
FROM embedding_studio.collection_aliases JOIN embedding_studio.collections AS c USING (collection_id)
WHERE alias = %(name)s

-- name: names
SELECT name FROM embedding_studio.collections WHERE collection_id = %(collection_id)s
UNION ALL
SELECT alias FROM embedding_studio.collection_aliases WHERE collection_id = %(collection_id)s

-- name: list
SELECT collection_id, name, index_info, embedder, gate_threshold, own_past, hashed_as, attached, filled
FROM embedding_studio.collections
ORDER BY name

-- name: aliases
SELECT alias, name
FROM embedding_studio.collection_aliases JOIN embedding_studio.collections USING (collection_id)
ORDER BY alias

-- name: set_gate_threshold
UPDATE embedding_studio.collections
SET gate_threshold = %(gate_threshold)s
WHERE collection_id = %(collection_id)s

-- name: set_own_past
UPDATE embedding_studio.collections
SET own_past = %(own_past)s
WHERE collection_id = %(collection_id)s

-- name: rename_embedder
UPDATE embedding_studio.collections
SET hashed_as = coalesce(hashed_as, embedder), embedder = %(embedder)s
WHERE collection_id = %(collection_id)s

-- name: delete
DELETE FROM embedding_studio.collections WHERE collection_id = %(collection_id)s

-- name: drop_schema
DROP SCHEMA {schema} CASCADE

-- name: set_alias
INSERT INTO embedding_studio.collection_aliases (alias, collection_id)
VALUES (%(alias)s, %(collection_id)s)
ON CONFLICT (alias) DO UPDATE SET collection_id = excluded.collection_id

-- name: drop_alias
DELETE FROM embedding_studio.collection_aliases
WHERE alias = %(alias)s

-- name: create_schema
CREATE SCHEMA {schema}

-- name: create_objects
-- Of a collection that is attached to another store: those alone that something was learnt from, or asked of; the hash
-- is of the original as it was read last, NULL where there was none.
CREATE TABLE {schema}.objects (
    object_id text COLLATE "C" PRIMARY KEY,
    payload jsonb NOT NULL,
    content_hash text,
    object_no bigint NOT NULL
)

-- name: index_payloads
-- Without fastupdate, whose list of what is not yet in the index made every filter a scan after a large load.
CREATE INDEX objects_payload ON {schema}.objects USING gin (payload jsonb_path_ops) WITH (fastupdate = off)

-- name: create_revision
-- One row. object_no: the last that was given; an object gets a new one whenever its parts change, above all others.
-- epoch: rises when the codes are written as a whole; 0 while there are none. margin: how cautious a search is, in
-- standard errors, where it was measured. encoded: parts there were when the centre was chosen. added, removed, blocks:
-- parts and rows that the log of this epoch holds.
CREATE TABLE {schema}.revision (
    revision bigint NOT NULL DEFAULT 0,
    object_no bigint NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0,
    centre bytea,
    margin double precision,
    encoded bigint NOT NULL DEFAULT 0,
    added bigint NOT NULL DEFAULT 0,
    removed bigint NOT NULL DEFAULT 0,
    blocks bigint NOT NULL DEFAULT 0
);
INSERT INTO {schema}.revision DEFAULT VALUES

-- name: create_codes
-- What was added and removed, in the order in which it happened: float32, int64 and codes, little-endian.
CREATE TABLE {schema}.codes (
    block bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    revision bigint NOT NULL,
    object_nos bytea NOT NULL,
    codes bytea NOT NULL,
    removed bytea NOT NULL
);
ALTER TABLE {schema}.codes
    ALTER COLUMN object_nos SET STORAGE EXTERNAL,
    ALTER COLUMN codes SET STORAGE EXTERNAL,
    ALTER COLUMN removed SET STORAGE EXTERNAL;
CREATE INDEX codes_by_revision ON {schema}.codes (revision)

-- name: create_parts
-- Originals as they were given, and under AVG one part more, the average of the others, numbered -1: of the
-- parts at unit length for cosine, so that its inner product with a query is their mean cosine. Without a foreign key,
-- whose look at each object took as long as storing its parts: they come and go with it in one transaction.
CREATE TABLE {schema}.parts (
    object_id text COLLATE "C",
    part_no integer,
    is_average boolean NOT NULL,
    embedding {vector} NOT NULL,
    object_no bigint NOT NULL,
    PRIMARY KEY (object_id, part_no),
    CHECK (is_average = (part_no < 0))
);
ALTER TABLE {schema}.parts ALTER COLUMN embedding SET STORAGE {storage};
CREATE INDEX parts_of_object ON {schema}.parts (object_no)

-- name: create_personal_parts
CREATE TABLE {schema}.personal_parts (
    user_id text COLLATE "C",
    object_id text COLLATE "C",
    part_no integer,
    embedding {vector} NOT NULL,
    object_no bigint,
    PRIMARY KEY (user_id, object_id, part_no)
);
ALTER TABLE {schema}.personal_parts ALTER COLUMN embedding SET STORAGE {storage}

-- name: index_personal_parts
CREATE INDEX personal_parts_of_object ON {schema}.personal_parts (object_id, user_id)

-- name: create_query_memory
CREATE TABLE {schema}.query_memory (
    user_id text COLLATE "C",
    session_id text COLLATE "C",
    search_query text NOT NULL,
    created_at bigint NOT NULL,
    query {vector} NOT NULL,
    clicked_mean {vector} NOT NULL,
    clicked_ids text[] COLLATE "C" NOT NULL,
    moved_ids text[] COLLATE "C" NOT NULL,
    likeness float8[] NOT NULL,
    PRIMARY KEY (user_id, session_id)
)

-- name: index_query_memory
CREATE INDEX query_memory_clicked ON {schema}.query_memory USING gin (clicked_ids)

-- name: create_shared_queries
-- What anybody voted for; a row goes with its last vote.
CREATE TABLE {schema}.shared_queries (
    query_key text COLLATE "C" PRIMARY KEY,
    query {vector} NOT NULL,
    query_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE
);
ALTER TABLE {schema}.shared_queries ALTER COLUMN query SET STORAGE {storage}

-- name: index_shared_queries
CREATE INDEX shared_queries_nearest ON {schema}.shared_queries USING hnsw ((query{cast}) {cosine_class})

-- name: create_shared_votes
CREATE TABLE {schema}.shared_votes (
    user_id text COLLATE "C",
    query_key text COLLATE "C" REFERENCES {schema}.shared_queries,
    clicked_mean {vector} NOT NULL,
    created_at bigint NOT NULL,
    object_ids text[] NOT NULL,
    clicks float8[] NOT NULL,
    looks float8[] NOT NULL,
    PRIMARY KEY (user_id, query_key)
);
ALTER TABLE {schema}.shared_votes ALTER COLUMN clicked_mean SET STORAGE {storage}

-- name: index_shared_votes
CREATE INDEX shared_votes_latest ON {schema}.shared_votes (query_key, created_at DESC, user_id)

-- name: create_vote_changes
-- Which queries' votes a transaction changed; a row goes after a while. Their numbers mean nothing
-- once a query has gone.
CREATE TABLE {schema}.vote_changes (
    xid xid8 PRIMARY KEY DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    query_nos bigint[] NOT NULL
)

-- name: index_vote_changes
CREATE INDEX vote_changes_at ON {schema}.vote_changes (at)
