-- Identifiers compare by their bytes (COLLATE "C"), so that the order of equal distances is the same on
-- every server and in Python.

CREATE TABLE embedding_studio.collections (
    collection_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    index_info jsonb NOT NULL,
    embedder text,
    gate_threshold double precision
);

CREATE TABLE embedding_studio.collection_aliases (
    alias text COLLATE "C" PRIMARY KEY,
    collection_id bigint NOT NULL REFERENCES embedding_studio.collections ON DELETE CASCADE
);

-- query_vectors: float32, little-endian, part after part.
CREATE TABLE embedding_studio.sessions (
    session_id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C",
    search_query text NOT NULL,
    collection text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    is_irrelevant boolean NOT NULL DEFAULT false,
    search_meta jsonb,
    query_vectors bytea,
    query_dimensions integer,
    CHECK ((query_vectors IS NULL) = (query_dimensions IS NULL))
);
CREATE INDEX sessions_of_user ON embedding_studio.sessions (user_id, created_at, session_id);

CREATE TABLE embedding_studio.session_results (
    session_id text COLLATE "C" REFERENCES embedding_studio.sessions ON DELETE CASCADE,
    object_id text COLLATE "C",
    position integer NOT NULL,
    distance double precision,
    personalised boolean NOT NULL,
    propensity double precision NOT NULL,
    meta jsonb,
    PRIMARY KEY (session_id, object_id)
);

CREATE TABLE embedding_studio.session_events (
    session_id text COLLATE "C" REFERENCES embedding_studio.sessions ON DELETE CASCADE,
    event_id text COLLATE "C",
    object_id text COLLATE "C" NOT NULL,
    event_type text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    meta jsonb,
    PRIMARY KEY (session_id, event_id)
);

CREATE INDEX results_of_object ON embedding_studio.session_results (object_id);
CREATE INDEX events_of_object ON embedding_studio.session_events (object_id);

-- One order a session. user_id and collection repeat the session's, for the claim, whose unit is the user;
-- a session of nobody is a unit of its own.
-- not_before: of a pending order, when its backoff ends; of a processing one, when its lease ends.
CREATE TABLE embedding_studio.sessions_for_improvement (
    session_id text COLLATE "C" PRIMARY KEY REFERENCES embedding_studio.sessions ON DELETE CASCADE,
    user_id text COLLATE "C",
    collection text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'done', 'failed', 'refused')),
    priority integer NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    detail text,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    not_before double precision NOT NULL DEFAULT 0,
    token text,
    unit text COLLATE "C" GENERATED ALWAYS AS (coalesce('user ' || user_id, 'session ' || session_id)) STORED,
    CHECK ((status = 'processing') = (token IS NOT NULL))
);
CREATE INDEX orders_to_claim ON embedding_studio.sessions_for_improvement (priority DESC, created_at, session_id)
    WHERE status IN ('pending', 'processing');
CREATE INDEX orders_of_unit ON embedding_studio.sessions_for_improvement (unit);
CREATE INDEX orders_by_change ON embedding_studio.sessions_for_improvement (updated_at DESC, session_id);

CREATE FUNCTION embedding_studio.seconds() RETURNS double precision
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN extract(epoch FROM clock_timestamp())::double precision;

-- Words are compared without regard to case. Before version 18 PostgreSQL has no Unicode case folding of
-- its own; lower() under the database's collation is the nearest.
--   words(text)            its words, in order
--   holds(text, patterns)  whether all of these regular expressions are found in it
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE FUNCTION embedding_studio.words(given text) RETURNS text[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT coalesce(array_agg(casefold(found[1] COLLATE pg_unicode_fast)), ''{}'')
                FROM regexp_matches(given COLLATE pg_unicode_fast, ''\w+'', ''g'') AS found';
        CREATE FUNCTION embedding_studio.holds(given text, patterns text[]) RETURNS boolean
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT given IS NOT NULL AND casefold(given COLLATE pg_unicode_fast) ~ ALL (patterns)';
    ELSE
        CREATE FUNCTION embedding_studio.words(given text) RETURNS text[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT coalesce(array_agg(lower(found[1])), ''{}'')
                FROM regexp_matches(given, ''\w+'', ''g'') AS found';
        CREATE FUNCTION embedding_studio.holds(given text, patterns text[]) RETURNS boolean
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS 'SELECT given IS NOT NULL AND lower(given) ~ ALL (patterns)';
    END IF;
END
$$;

-- Patterns of a text's words, each anywhere: \m and \M are where a word begins and ends.
CREATE FUNCTION embedding_studio.each_word(given text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ARRAY(SELECT '\m' || word || '\M' FROM unnest(embedding_studio.words(given)) AS word);

-- The pattern of a text's words, one after the other.
CREATE FUNCTION embedding_studio.phrase(given text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ARRAY[coalesce('\m' || nullif(array_to_string(embedding_studio.words(given), '\W+'), '') || '\M', '')];
